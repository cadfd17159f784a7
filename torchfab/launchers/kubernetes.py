"""torchrun in the pods of an Indexed Job, or of a JobSet. To change a launch, change `torchrun_argv`.

Pods need no ssh: the manifest is complete, and --dry-run prints it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib import resources
from typing import Any

from torchfab.core import environment
from torchfab.core.flag_values import WholeNumber, flag
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Job, Node, Submission
from torchfab.launchers import torchrun_script
from torchfab.launchers.manifest import quantities, yaml_text
from torchfab.launchers.manifest.objects import INDEX, Shape, build_objects
from torchfab.launchers.nproc import CPU_PROCESSES

NAME = "kubernetes"
RUNTIME = "kubernetes"
PORT = 29500  # every pod has its own address, so no other program uses the port
_LINGER_S = 5.0  # see `pod_entrypoint`
_SHELL = 'shell=$(command -v bash || echo sh); exec "$shell" -c "$0" "$shell" "$@"'
RANK_PREFIX = "[rank${rank}]:"  # torchrun puts it before each line of a rank


@dataclass(frozen=True)
class Flags:
    """The flags of launch-kubernetes alone."""

    image: str = flag("", "Container image, with Python, torch and the script in it.")
    nodes: int = flag(1, "Number of pods, each with one torchrun. [1]", WholeNumber(1))
    gpus_per_node: int = flag(0, "GPUs of each pod; 0: train on its CPUs. [0]", WholeNumber())
    nproc_per_node: int | None = flag(None, "Ranks per pod. [its GPUs, else 2]", WholeNumber(1))
    gpu_resource: str = flag("nvidia.com/gpu", "What the cluster calls a GPU. [nvidia.com/gpu]")
    cpus: str = flag("", "Cores that each pod is sure to get: 16, 500m. [what the namespace gives]")
    memory: str = flag("", "Memory of each pod, and its limit: 64Gi. [what the namespace gives]")
    shm: str = flag("", "Size of /dev/shm, which counts as memory: 16Gi. [as much as the pod may use]")
    namespace: str = flag("", "Namespace. [the context's]")
    context: str = flag("", "Context of the kubeconfig. [the current one]")
    pvc: tuple[str, ...] = flag((), "NAME:/path: a PersistentVolumeClaim and where it is mounted; may be given again.")
    image_pull_secret: tuple[str, ...] = flag((), "Secret that the image is pulled with; may be given again.")
    service_account: str = flag("", "Service account of the pods; its token is mounted only then. [default]")
    priority_class: str = flag("", "PriorityClass of the pods. [the cluster's]")
    node_selector: tuple[str, ...] = flag((), "KEY=VALUE: only nodes with this label; may be given again.")
    toleration: tuple[str, ...] = flag((), "KEY[=VALUE][:EFFECT]: also nodes with this taint; may be given again.")
    queue: str = flag("", "Kueue queue: the job waits there until it is admitted as a whole. [none]")
    jobset: bool = flag(False, "Make a JobSet, for clusters that have it: restarts are of all pods together.")
    max_restarts: int = flag(0, "How often the pods are made again after a failure. [0]", WholeNumber())
    # Pulling a large image takes minutes, and so does adding machines to the cluster.
    rdzv_timeout: int = flag(3600, "Seconds that pods wait for the first one. [3600]", WholeNumber(1))
    user: str = flag("1000", "User id of the container, or image: the image's own, which may be root. [1000]")


def options(flags: Flags) -> Mapping[str, Any]:
    """Check the flags.

    Parameters
    ----------
    flags : Flags
        The flags of this launcher.

    Returns
    -------
    Mapping
        The options of the job (`Job.options`).

    Raises
    ------
    UsageError
        The value of a flag is invalid.
    """
    return {
        "image": quantities.image(flags.image),
        "nodes": flags.nodes,
        "gpus": flags.gpus_per_node,
        "ranks": flags.nproc_per_node or flags.gpus_per_node or CPU_PROCESSES,
        "gpu_resource": quantities.qualified_name("--gpu-resource", flags.gpu_resource),
        **{name: _optional(quantities.quantity, name, flags) for name in ("cpus", "memory", "shm")},
        **{
            name: _optional(quantities.domain, name, flags)
            for name in ("namespace", "service_account", "priority_class", "queue")
        },
        "context": flags.context,
        "volumes": quantities.volumes(flags.pvc),
        "pull_secrets": [quantities.domain("--image-pull-secret", each) for each in flags.image_pull_secret],
        "node_selector": quantities.node_selector(flags.node_selector),
        "tolerations": [quantities.toleration(each) for each in flags.toleration],
        "jobset": flags.jobset,
        "max_restarts": flags.max_restarts,
        "rdzv_timeout_s": flags.rdzv_timeout,
        "user": quantities.user(flags.user),
    }


def _optional(check: Any, name: str, flags: Flags) -> str:
    given: str = getattr(flags, name)
    return check(f"--{name.replace('_', '-')}", given) if given else ""


def plan(job: Job) -> Submission:
    """Plan the submission: the manifest of the job.

    Parameters
    ----------
    job : Job
        The job; its options come from `options`.

    Returns
    -------
    Submission

    Raises
    ------
    UsageError
        The job's name is not a DNS name, or an argument or a value is not Unicode.
    """
    shape = _shape(job)
    yaml_text.check_text("--workdir", job.workdir)
    container = {"command": _command(job), "args": _args(job, shape), "env": _env(job, shape)}
    objects = build_objects(job, shape, container)
    ranks = job.options["ranks"]
    return Submission(
        job=job,
        text=yaml_text.to_yaml(objects, _comments(job, shape)),
        nodes=shape.nodes,
        world_size=shape.nodes * ranks,
        details={
            "id": shape.token,
            "name": shape.name,
            "kind": shape.kind,
            "context": job.options["context"],
            "namespace": job.options["namespace"],
            "secret": shape.secret if job.secrets else "",
            "claims": [each["claim"] for each in job.options["volumes"]],
            "ranks_per_node": ranks,
            "max_restarts": job.options["max_restarts"],
            "queue": job.options["queue"],
        },
        defaults=_resolved_defaults(job, shape),
        hosts=tuple(Node(rank, shape.pod(rank)) for rank in range(shape.nodes)),
    )


def torchrun_argv(job: Job, shape: Shape) -> tuple[str, ...]:
    """Return the arguments of torchrun in every pod; the kubelet expands `$(NAME)`.

    The rendezvous is static, so ranks follow the pods' indices; torchrun retries while the first pod has no address
    yet.

    Parameters
    ----------
    job : Job
        The job.
    shape : Shape
        Names and number of its pods.

    Returns
    -------
    tuple of str
    """
    return (
        *("--nnodes", str(shape.nodes)),
        *("--nproc-per-node", str(job.options["ranks"])),
        *("--node-rank", f"$({INDEX})"),
        *("--rdzv-backend", "static", "--master-addr", shape.master, "--master-port", str(PORT)),
        *("--rdzv-conf", f"timeout={job.options['rdzv_timeout_s']}"),
        *("--max-restarts", "0"),
        *("--tee", "3"),
    )


def _command(job: Job) -> list[str]:
    words = [*_preparation(job), yaml_text.check_text("--python", job.python), "-c"]
    return [yaml_text.escape(word) for word in words]


def _preparation(job: Job) -> tuple[str, ...]:
    """Return the words in front of a command that run --setup and --before first; none without those flags.

    The shell is not a login shell: in many images, a login shell resets the PATH that the image has set.
    """
    if not (job.setup or job.before):
        return ()
    setup = f"{{ {yaml_text.check_text('--setup', job.setup)}\n}} || exit\n" if job.setup else ""
    before = f"sh -c {shlex.quote(yaml_text.check_text('--before', job.before))} || exit\n" if job.before else ""
    return ("/bin/sh", "-c", _SHELL, f'{setup}{before}exec "$@"')


def _args(job: Job, shape: Shape) -> list[str]:
    script = [yaml_text.escape(yaml_text.check_text("an argument", arg)) for arg in torchrun_script(job)]
    return [yaml_text.escape(_program()), *torchrun_argv(job, shape), *script]


def _program() -> str:
    """Return the source of the pod's entry point; it needs torch, so it is not imported here."""
    return (resources.files("torchfab.launchers.manifest") / "pod_entrypoint.py").read_text(encoding="utf-8")


def _env(job: Job, shape: Shape) -> list[dict[str, Any]]:
    # A user without an entry in the image's /etc/passwd has no home folder and no name.
    home = {} if job.options["user"] is None else {"HOME": "/tmp", "USER": "torchfab"}
    variables = {
        "PYTHONUNBUFFERED": "1",
        "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": RANK_PREFIX,
        **environment.omp_threads(job.options["ranks"], job.options["gpus"], quantities.cores(job.options["cpus"])),
        **home,
        **job.env,
        environment.JOB_ID: job.job_id,
        "TORCHFAB_GRACE_S": f"{job.grace_s:g}",
        **({"TORCHFAB_LINGER_S": f"{_LINGER_S:g}"} if shape.nodes > 1 else {}),
        **({"TORCHFAB_AFTER": job.after, "TORCHFAB_AFTER_S": f"{job.hook_timeout_s:g}"} if job.after else {}),
    }
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    entries: dict[str, dict[str, Any]] = {INDEX: {"valueFrom": index}}
    for name, value in variables.items():
        entries.setdefault(name, {"value": yaml_text.escape(yaml_text.check_text(f"the value of {name}", value))})
    entries[environment.NODE_RANK] = {"value": f"$({INDEX})"}
    for name, value in job.secrets.items():
        yaml_text.check_text(f"the value of {name}", value)
        entries[name] = {"valueFrom": {"secretKeyRef": {"name": shape.secret, "key": name}}}
    return [{"name": name, **entry} for name, entry in entries.items()]


def _shape(job: Job) -> Shape:
    nodes, jobset = job.options["nodes"], job.options["jobset"]
    middle = "-node-0-" if jobset else "-"
    name = quantities.object_name(job.name, f"{middle}{nodes - 1}")
    return Shape(name, nodes, middle, job.job_id.rsplit("-", 1)[-1], PORT)


def _resolved_defaults(job: Job, shape: Shape) -> Mapping[str, str]:
    options = job.options
    ranks, user = options["ranks"], options["user"]
    return {
        "job": job.name,
        "objects": f"{shape.kind} {shape.name}" + (f", Secret {shape.secret}" if job.secrets else ""),
        "where": f"namespace {options['namespace'] or 'of the context'}, "
        f"context {options['context'] or 'the current one'}",
        "nodes": f"{shape.nodes} pods, {options['gpus']} {options['gpu_resource']} each",
        "ranks": f"{shape.nodes * ranks} ({ranks} per pod)",
        "master": f"{shape.master}:{PORT}",
        "image": options["image"],
        "user": "the image's own" if user is None else str(user),
        "workdir": job.workdir,
        "python": job.python,
    }


def _comments(job: Job, shape: Shape) -> list[str]:
    lines = [f"{key}: {value}" for key, value in _resolved_defaults(job, shape).items()]
    lines += ["", "Launch it without torchfab: kubectl " + shlex.join([*_kubectl_options(job), "apply", "-f", "-"])]
    if job.secrets:
        # The reader's shell provides the values: printf is a builtin, so ps does not show them.
        files = " ".join(f'--from-file={name}=<(printf %s "${{{name}?}}")' for name in sorted(job.secrets))
        create = shlex.join([*_kubectl_options(job), "create", "secret", "generic", shape.secret])
        lines += ["Secret values are not in this text. In bash, with these variables set, first:"]
        lines += [f"  kubectl {create} {files}"]
    return lines


def _kubectl_options(job: Job) -> list[str]:
    context, namespace = job.options["context"], job.options["namespace"]
    return [*(["--context", context] if context else []), *(["--namespace", namespace] if namespace else [])]

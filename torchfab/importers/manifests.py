"""Convert a manifest of Kubernetes (PyTorchJob, TrainJob, JobSet, Job) to a command line of launch-kubernetes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torchfab.core.flag_values import is_whole
from torchfab.core.hostfiles.structured import number_of
from torchfab.importers import launch_lines, scripts, variables
from torchfab.importers.document_values import Document
from torchfab.importers.draft import Draft, dynamic

KINDS = {"PyTorchJob": "a PyTorchJob", "TrainJob": "a TrainJob", "JobSet": "a JobSet", "Job": "a Job of Kubernetes"}
_GPU_RESOURCES = re.compile(r".*/(gpu|xpu|npu|gaudi|neuron)")
_SUPPORT = "torchfab's own manifest sets it"
QUEUE = "kueue.x-k8s.io/queue-name"


def matches(document: Any) -> bool:
    """Return whether a document is a manifest of Kubernetes.

    Parameters
    ----------
    document : any
        The document, as `structured.load` returns it.

    Returns
    -------
    bool
    """
    return isinstance(document, dict) and "kind" in document and "apiVersion" in document


def read(document: dict[str, Any]) -> Draft:
    """Convert a manifest to a command line.

    Parameters
    ----------
    document : dict
        The document, as `structured.load` returns it; its values are removed.

    Returns
    -------
    Draft
        Without a script if the pods run none.
    """
    draft = Draft("a manifest of Kubernetes", task="launch-kubernetes")
    root = Document(document, draft)
    kind = root.text("kind")
    root.take("apiVersion")
    draft.title = KINDS.get(kind, f"the kind {kind} of Kubernetes")
    _metadata(root, draft)
    readers = {"PyTorchJob": _pytorch_job, "TrainJob": _train_job, "JobSet": _job_set, "Job": _job}
    if kind in readers:
        readers[kind](root.part("spec"), draft)
    root.take("status")
    root.rest()
    return draft


def _metadata(root: Document, draft: Draft) -> None:
    metadata = root.part("metadata")
    name = metadata.text("name")
    if re.fullmatch(r"[a-z0-9][a-z0-9-]{0,51}", name):
        draft.set("name", name)
    if namespace := metadata.text("namespace"):
        draft.set("namespace", namespace)
    if queue := metadata.text("labels", QUEUE):
        draft.set("queue", queue)
    metadata.rest()


# ---- kinds


def _pytorch_job(spec: Document, draft: Draft) -> None:
    replicas = spec.part("pytorchReplicaSpecs")
    master, worker = replicas.part("Master"), replicas.part("Worker")
    counts = [_count(part.text("replicas"), 1 if part.value else 0) for part in (master, worker)]
    draft.set("nodes", str(max(1, sum(counts))))
    spec.drop("fab keeps the pods of an ended job until fab jobs --remove", "runPolicy", "cleanPodPolicy")
    limit = spec.text("runPolicy", "backoffLimit")
    if is_whole(limit) and limit != "0":
        draft.set("max-restarts", limit)
    ranks = spec.text("nprocPerNode")
    if is_whole(ranks):
        draft.set("nproc-per-node", ranks)
    for part in (master, worker):
        part.drop("a failed pod fails the job; with --max-restarts the pods are created again", "restartPolicy")
    first = master if master.value.get("template") else worker
    _pod(first.part("template"), draft)
    if first is master and worker.value:  # nearly always, the workers' template repeats that of the master
        template = worker.part("template")
        number = number_of(next(iter(template.value), ""))
        draft.skip(number, f"{template.path}.*", "all pods of a job are equal: the template of Master is used")
    for part in (master, worker, replicas, spec):
        part.rest()


def _train_job(spec: Document, draft: Draft) -> None:
    trainer = spec.part("trainer")
    draft.set("nodes", trainer.text("numNodes") or "1")
    ranks = trainer.text("numProcPerNode")
    if is_whole(ranks):
        draft.set("nproc-per-node", ranks)
    image = trainer.text("image")
    if image:
        draft.set("image", image)
    _resources(trainer.part("resourcesPerNode"), draft)
    _environment(trainer, draft)
    _command(trainer, draft)
    reference = spec.part("runtimeRef")
    name = reference.text("name")
    if name:
        fix = "its image, command and volumes are in the runtime: kubectl get clustertrainingruntime -o yaml"
        draft.skip(number_of(name), f"runtimeRef.name: {name}", fix)
    reference.take("kind")
    reference.take("apiGroup")
    for part in (reference, trainer, spec):
        part.rest()


def _job_set(spec: Document, draft: Draft) -> None:
    draft.set("jobset")
    jobs = spec.items("replicatedJobs")
    limit = spec.text("failurePolicy", "maxRestarts")
    if is_whole(limit) and limit != "0":
        draft.set("max-restarts", limit)
    for index, job in enumerate(jobs):
        if index:
            job.rest("a second replicated job: all pods of a job are equal")
            continue
        job.take("name")
        copies = _count(job.text("replicas"), 1)
        inner = job.part("template", "spec")
        _job(inner, draft, copies)
        job.rest()
    spec.rest()


def _job(spec: Document, draft: Draft, copies: int = 1) -> None:
    pods = spec.text("completions") or spec.text("parallelism") or "1"
    spec.take("completions")
    spec.take("parallelism")
    spec.take("completionMode")
    draft.set("nodes", str(_count(pods, 1) * copies))
    limit = spec.text("backoffLimit")
    if is_whole(limit) and limit != "0":
        draft.set("max-restarts", limit)
    _pod(spec.part("template"), draft)
    spec.rest()


def _count(text: str, default: int) -> int:
    return int(text) if is_whole(text) else default


# ---- pods


def _pod(template: Document, draft: Draft) -> None:
    labels = template.part("metadata")
    labels.rest("torchfab sets its own labels")
    spec = template.part("spec")
    containers = spec.items("containers")
    for index, container in enumerate(containers):
        if index:
            container.rest("a second container: fab runs one in each pod")
        else:
            _container(container, draft, _volumes(spec, draft))
    _placement(spec, draft)
    spec.drop("a failed pod fails the job; with --max-restarts the pods are created again", "restartPolicy")
    spec.drop(_SUPPORT, "subdomain")
    spec.rest()
    template.rest()


def _placement(spec: Document, draft: Draft) -> None:
    for flag, key in (("service-account", "serviceAccountName"), ("priority-class", "priorityClassName")):
        if value := spec.text(key):
            draft.set(flag, value)
    for key, value in spec.part("nodeSelector").value.items():
        draft.set("node-selector", f"{key}={value}")
    for secret in spec.items("imagePullSecrets"):
        draft.set("image-pull-secret", secret.text("name"))
    for each in spec.items("tolerations"):
        key, value, effect = each.text("key"), each.text("value"), each.text("effect")
        each.take("operator")
        if key:
            draft.set("toleration", key + (f"={value}" if value else "") + (f":{effect}" if effect else ""))
        each.rest()


def _container(container: Document, draft: Draft, volumes: dict[str, tuple[str, str]]) -> None:
    container.take("name")
    if image := container.text("image"):
        draft.set("image", image)
    if workdir := container.text("workingDir"):
        draft.set("workdir", workdir)
    _resources(container.part("resources"), draft)
    _environment(container, draft)
    for mount in container.items("volumeMounts"):
        kind, name = volumes.get(mount.text("name"), ("", ""))
        path = mount.text("mountPath")
        if kind == "pvc" and not mount.value:
            draft.set("pvc", f"{name}:{path}")
        elif kind == "shm" and path == "/dev/shm":
            if name:
                draft.set("shm", name)
        else:
            draft.skip(number_of(path), f"{mount.path}: {path}", "only PersistentVolumeClaims and /dev/shm are mounted")
    container.drop(_SUPPORT, "ports")
    container.drop("Kubernetes' default for the image's tag", "imagePullPolicy")
    _command(container, draft)
    container.rest()


def _volumes(spec: Document, draft: Draft) -> dict[str, tuple[str, str]]:
    """Return the kind and the claim, or the size, of each volume by its name."""
    found: dict[str, tuple[str, str]] = {}
    for volume in spec.items("volumes"):
        name = volume.text("name")
        claim = volume.text("persistentVolumeClaim", "claimName")
        empty = volume.part("emptyDir")
        if claim:
            found[name] = ("pvc", claim)
            volume.take("persistentVolumeClaim")
        elif empty.text("medium") == "Memory":
            found[name] = ("shm", empty.text("sizeLimit"))
        empty.rest()
        volume.rest("only PersistentVolumeClaims and /dev/shm are mounted")
    return found


def _resources(resources: Document, draft: Draft) -> None:
    limits, requests = resources.part("limits"), resources.part("requests")
    for part in (limits, requests):
        for name in [key for key in part.value if _GPU_RESOURCES.fullmatch(key)]:
            draft.flags["gpus-per-node"] = [part.text(name)]
            if name != "nvidia.com/gpu":
                draft.flags["gpu-resource"] = [name]
    cpus, memory = requests.text("cpu") or limits.text("cpu"), limits.text("memory") or requests.text("memory")
    for flag, value in (("cpus", cpus), ("memory", memory)):
        if value:
            draft.set(flag, value)
    for part in (limits, requests):
        part.take("cpu")
        part.take("memory")
        part.rest()
    resources.rest()


def _environment(container: Document, draft: Draft) -> None:
    for variable in container.items("env"):
        name = variable.text("name")
        has_value = "value" in variable.value
        value = variable.text("value")
        if has_value or name in ("RANK", "NODE_RANK"):
            variables.carry(draft, number_of(name), name, _references(value))
        else:
            draft.skip(
                number_of(name), f"env {name}", "its value comes from the cluster: give it with --env NAME=VALUE"
            )
        variable.value.clear()


def _references(text: str) -> str:
    """Return a text in which the references of Kubernetes, `$(NAME)`, are marked as dynamic."""
    return re.sub(r"\$\(([A-Za-z_]\w*)\)", lambda match: dynamic(f"${match[1]}"), text)


def _command(container: Document, draft: Draft) -> None:
    words = [*container.texts("command"), *container.texts("args")]
    number = next((number_of(word) for word in words if number_of(word)), 0)
    launch = launch_lines.parse([_references(word) for word in words])
    if launch is not None:
        launch.apply(draft, number)
        _apply_settings(launch, draft)
        return
    shell = _shell_text(words)
    if shell is not None:
        _apply_script(scripts.read(shell), draft, number_of(words[2]) + ("\n" in words[2]))  # a block begins below
    elif words:
        draft.skip(number, " ".join(words), "fab import cannot convert this command")


def _shell_text(words: Sequence[str]) -> str | None:
    if len(words) > 2 and words[0].rpartition("/")[2] in ("bash", "sh") and re.fullmatch(r"-[a-z]*c", words[1]):
        return re.sub(r"\$\(([A-Za-z_]\w*)\)", r"${\1}", words[2])
    return None


def _apply_script(inner: Draft, draft: Draft, number: int) -> None:
    """Add the command of a container's shell script to the draft of the manifest."""
    draft.script = inner.script
    draft.env.update({name: value for name, value in inner.env.items() if name not in draft.env})
    for flag, values in inner.flags.items():
        if flag in ("nproc-per-node", "workdir", "python"):
            draft.flags.setdefault(flag, values)
    for entry in inner.skipped:
        draft.skip(number + max(0, entry.number - 1), entry.text, entry.reason)


def _apply_settings(launch: launch_lines.Launch, draft: Draft) -> None:
    ranks = launch.settings.get("nproc-per-node", "")
    if is_whole(ranks) and ranks != draft.value("gpus-per-node"):
        draft.flags.setdefault("nproc-per-node", [ranks])
    if "python" in launch.settings:
        draft.set("python", launch.settings["python"])
    if "max-restarts" in launch.settings:
        draft.flags.setdefault("max-restarts", [launch.settings["max-restarts"]])

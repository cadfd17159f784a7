"""torchrun once per node of a Slurm allocation. To change a launch, change `sbatch_text`.

The tutorial's `job.slurm` had `# SBATCH --ntasks-per-node=1`: the blank makes it a comment, which sbatch ignores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torchfab.core import environment
from torchfab.core.errors import UsageError
from torchfab.core.flag_values import WholeNumber, flag
from torchfab.core.format import plural
from torchfab.core.inventory import parse_hosts
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Job, Node, Submission
from torchfab.launchers import sbatch, torchrun_agent, torchrun_rank
from torchfab.launchers.per_node import RANK_LOGS

NAME = "slurm"
RUNTIME = "slurm"
CPU_PROCESSES = 2  # default number of ranks on a node without GPUs
SIGNAL = "USR1"
SIGNAL_GRACE_S = 120
_TIME = re.compile(r"(?:(\d{1,4})-)?(\d{1,6})(?::(\d{1,2}))?(?::(\d{1,2}))?")
_GPUS = re.compile(r"(?:[A-Za-z0-9_.-]+:)?(\d{1,3})")
# Options that the file itself sets, or that would submit something other than one job, with the alternative.
_RESERVED = {
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu"), "use --nodes"),
    **dict.fromkeys(("output", "error", "open-mode", "input"), "the job's own folder holds it: fab logs"),
    **dict.fromkeys(("export", "export-file", "get-user-env"), "use --env NAME=VALUE"),
    **{name: f"use --{name}" for name in ("gpus-per-node", "partition", "account", "qos", "time", "constraint")},
    **{name: f"use --{name}" for name in ("cpus-per-task", "exclusive", "no-requeue", "job-name")},
    **dict.fromkeys(("gpus", "gpus-per-task", "gres"), "use --gpus-per-node"),
    **dict.fromkeys(("array", "wrap", "parsable", "test-only", "wait"), "fab submits one job that runs one script"),
    "chdir": "use --workdir",
    "requeue": "it is the default",
    "signal": "use --signal-grace",
}


@dataclass(frozen=True)
class Flags:
    """The flags of launch-slurm alone."""

    nodes: int = flag(1, "How many nodes. [1]", WholeNumber(1, 100_000))
    gpus_per_node: str = flag("", "GPUs on each node, as N or TYPE:N; 0: none. [none]")
    nproc_per_node: int | None = flag(None, "Ranks per node. [its GPUs, else 2]", WholeNumber(1, 1024))
    partition: str = flag("", "Partition. [the cluster's default]")
    account: str = flag("", "Account that pays. [yours]")
    qos: str = flag("", "Quality of service. [yours]")
    time: str = flag("", "Time limit, as sbatch takes it: 90 (minutes), 1:30:00, 2-12:00:00. [the partition's]")
    cpus_per_task: int | None = flag(
        None, "CPU cores on each node, for all of its ranks together. [the cluster's default]", WholeNumber(1, 100_000)
    )
    constraint: str = flag("", "Features that the nodes must have.")
    exclusive: bool = flag(False, "Do not share the nodes with other jobs.")
    no_requeue: bool = flag(False, "Do not run the job again when a node fails, or when it was preempted.")
    job_name: str = flag("", "Slurm's name for the job; blanks are fine. [its torchfab name]")
    sbatch_arg: tuple[str, ...] = flag((), "Any other option of sbatch: --sbatch-arg=--mem=0; may be given again.")
    signal_grace: int | None = flag(
        None,
        "Seconds before the time limit at which the ranks get SIGUSR1. [120, or half of --time]",
        WholeNumber(1, 65535),
    )
    port: int = flag(
        0,
        "Port of the rendezvous on the first node. [10000 to 29999, from Slurm's job id]",
        WholeNumber(1, 65535, zero="one from Slurm's job id"),
    )
    login: str = flag("", "[user@]host[:port] where sbatch is, by SSH. [this machine]")


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
    gpus = _gpus(flags.gpus_per_node)
    return {
        "nodes": flags.nodes,
        "gpus_per_node": gpus,
        "gpus": flags.gpus_per_node,
        "nproc_per_node": flags.nproc_per_node or gpus or CPU_PROCESSES,
        "cpus_per_task": flags.cpus_per_task,
        "words": {name: getattr(flags, name) for name in ("partition", "account", "qos", "time", "constraint")},
        "exclusive": flags.exclusive,
        "requeue": not flags.no_requeue,
        "job_name": flags.job_name,
        "others": _others(flags.sbatch_arg),
        "signal_grace_s": _signal_grace(flags.signal_grace, _time_s(flags.time)),
        "port": flags.port or None,
        "login": login_node(flags.login).as_json(),
    }


def _gpus(text: str) -> int:
    match = _GPUS.fullmatch(text or "0")
    if not match:
        raise UsageError(
            f"--gpus-per-node must be N or TYPE:N, got {text!r}", "for example --gpus-per-node 8, or a100:4"
        )
    return int(match[1])


def _time_s(text: str) -> int | None:
    """Return a time limit in seconds; None if unlimited."""
    if not text or text.upper() in ("UNLIMITED", "INFINITE"):
        return None
    match = _TIME.fullmatch(text)
    if not match or (match[1] is None and match[3] is None and match[4] is not None):
        raise UsageError(f"--time is a time limit as sbatch takes it, got {text!r}", "for example 90, 1:30:00, 2-12:00")
    days, first, second, third = (int(each) if each is not None else None for each in match.groups())
    if days is not None:  # D-H, D-H:M, D-H:M:S
        return ((days * 24 + (first or 0)) * 60 + (second or 0)) * 60 + (third or 0)
    if third is not None:  # H:M:S
        return ((first or 0) * 60 + (second or 0)) * 60 + third
    return (first or 0) * 60 + (second or 0)  # M, M:S


def _signal_grace(grace_s: int | None, limit_s: int | None) -> int:
    """Return how long before the limit the signal is sent. It must be less than the limit, else it is sent at once."""
    if grace_s is None:
        return min(SIGNAL_GRACE_S, max(1, limit_s // 2)) if limit_s else SIGNAL_GRACE_S
    if limit_s and grace_s >= limit_s:
        raise UsageError(f"--signal-grace {grace_s} s is not less than the time limit of {limit_s} s")
    return grace_s


def _others(args: Sequence[str]) -> dict[str, str | None]:
    """Return the other options of sbatch, by name; None for one without a value."""
    found: dict[str, str | None] = {}
    for arg in args:
        match = re.fullmatch(r"--([a-z][a-z0-9-]*)(?:=(.*))?", arg, re.DOTALL)
        if not match:
            raise UsageError(f"--sbatch-arg takes one option in its long form, got {arg!r}", "--sbatch-arg=--mem=64G")
        name = match[1]
        if name in _RESERVED and name != "job-name":
            raise UsageError(f"--sbatch-arg cannot set --{name}", _RESERVED[name])
        found[name] = match[2]
    return found


def login_node(text: str) -> Node:
    """Return the node on which Slurm's commands run.

    Parameters
    ----------
    text : str
        `[user@]host[:port]`; empty: this machine.

    Returns
    -------
    Node

    Raises
    ------
    UsageError
        The value does not name exactly one host.
    """
    nodes = parse_hosts(text or "localhost", "--login")
    if len(nodes) != 1:
        raise UsageError(f"--login names one host, got {text!r}")
    return nodes[0]


def plan(job: Job) -> Submission:
    """Plan the submission: one sbatch file.

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
        The job's folder is not an absolute path, or an sbatch file cannot hold a value.
    """
    nodes, ranks = job.options["nodes"], job.options["nproc_per_node"]
    folder = job_folder(job)
    details = {
        "folder": folder,
        "login": job.options["login"],
        "options": sorted(_directives(job, folder)),
        "spec": _spec(job),
        "workdir": job.workdir,
        "script": job.script_path,
        "python": "" if job.setup else job.python,  # files that only exist after the setup cannot be checked here
    }
    return Submission(job, sbatch_text(job, folder), nodes, nodes * ranks, details, _resolved_defaults(job, folder))


def _spec(job: Job) -> dict[str, Any]:
    """Return the spec of the supervisors; with the static rendezvous the ranks of a node are known beforehand."""
    base = {"name": "agent", "grace_s": job.grace_s, "rank_logs": RANK_LOGS, "ignore": [f"SIG{SIGNAL}"]}
    if job.after:
        base.update(after=job.after, after_timeout_s=job.hook_timeout_s)
    return {**base, "nodes": job.options["nodes"], "ranks_per_node": job.options["nproc_per_node"]}


def job_folder(job: Job) -> str:
    """Return the job's folder: all nodes and the login node must share it under this path.

    Parameters
    ----------
    job : Job
        The job.

    Returns
    -------
    str

    Raises
    ------
    UsageError
        `torchfab.node_dir` is not an absolute path.
    """
    if not job.node_dir.startswith("/"):
        raise UsageError(
            f"the setting node_dir is {job.node_dir!r}: sbatch takes absolute paths only",
            "set it (fab config) to a folder that all nodes share, or run it as FABRIC_TORCHFAB_NODE_DIR=/shared/me",
        )
    return f"{job.node_dir.rstrip('/')}/jobs/{job.job_id}"


def _resolved_defaults(job: Job, folder: str) -> Mapping[str, str]:
    options = job.options
    port = options["port"] or "10000 + Slurm's job id % 20000"
    return {
        "job": job.name,
        "ranks": f"{options['nodes'] * options['nproc_per_node']} ({options['nproc_per_node']} per node)",
        "master": f"the first node of the allocation, port {port}",
        "signal": f"SIG{SIGNAL} {options['signal_grace_s']} s before the time limit",
        "folder": folder,
        "workdir": job.workdir,
        "python": job.python,
    }


# ---- the file


def sbatch_text(job: Job, folder: str) -> str:
    """Return the text of the sbatch file: options, environment, rendezvous, and one torchrun per node.

    Parameters
    ----------
    job : Job
        The job.
    folder : str
        Its folder.

    Returns
    -------
    str
    """
    script = sbatch.Script(
        directives=_directives(job, folder),
        comments=_comments(job, folder),
        env={"PYTHONUNBUFFERED": "1", **job.env, environment.JOB_ID: job.job_id},
        secrets=sorted(job.secrets),
        folder=folder,
        workdir=job.workdir,
        port=job.options["port"],
        python=sbatch.quote(job.python),
        torchrun=torchrun_args(job),
        script=torchrun_rank.command(job),
        threads=_threads(job),
        setup=job.setup,
        python_is_default=job.python_is_default,
        before=job.before,
        srun=("--cpus-per-task", str(job.options["cpus_per_task"])) if job.options["cpus_per_task"] else (),
    )
    return script.render()


def torchrun_args(job: Job) -> tuple[tuple[str, ...], ...]:
    """Return the arguments of the interpreter on a node, as shell words; a shell expands `$`.

    The rendezvous is static: ranks follow the nodes as Slurm lists them, and only the master's address must be right.

    Parameters
    ----------
    job : Job
        The job.

    Returns
    -------
    tuple of tuple of str
        One for each option with its value.
    """
    return (
        tuple(map(sbatch.quote, torchrun_agent.arguments())),
        ("--rdzv-backend", "static"),
        ("--master-addr", '"$master_addr"'),
        ("--master-port", '"$master_port"'),
        ("--nnodes", str(job.options["nodes"])),
        ("--node-rank", '"$SLURM_NODEID"'),
        ("--nproc-per-node", str(job.options["nproc_per_node"])),
        ("--redirects", "3"),
        ("--log-dir", '"$node/logs"'),
    )


def _threads(job: Job) -> str:
    """Return OMP_NUM_THREADS as shell: 1 on nodes with GPUs, else the node's cores divided by its ranks."""
    ranks = job.options["nproc_per_node"]
    share = f"$((SLURM_CPUS_ON_NODE > {ranks} ? SLURM_CPUS_ON_NODE / {ranks} : 1))"
    return "1" if job.options["gpus_per_node"] else share


def _directives(job: Job, folder: str) -> dict[str, str | None]:
    options = job.options
    texts = {name: value for name, value in options["words"].items() if value}
    return {
        "job-name": options["job_name"] or job.name,
        "nodes": str(options["nodes"]),
        "ntasks-per-node": "1",
        **({"gpus-per-node": options["gpus"]} if options["gpus_per_node"] else {}),
        **({"cpus-per-task": str(options["cpus_per_task"])} if options["cpus_per_task"] else {}),
        **({"exclusive": None} if options["exclusive"] else {}),
        **texts,
        "signal": f"{SIGNAL}@{options['signal_grace_s']}",
        ("requeue" if options["requeue"] else "no-requeue"): None,
        "open-mode": "append",
        "output": f"{folder}/slurm.log".replace("%", "%%"),
        "chdir": job.workdir,
        "export": "ALL",
        **options["others"],
    }


def _comments(job: Job, folder: str) -> list[str]:
    options = job.options
    ranks = f"{plural(options['nodes'] * options['nproc_per_node'], 'rank')} on {plural(options['nodes'], 'node')}"
    lines = [
        f"torchfab job {job.name}: {ranks}, {options['nproc_per_node']} per node",
        "submitted without torchfab, this file launches the same job (without its supervisor and records):",
        f"  mkdir -p -m 700 {sbatch.quote(folder)} && sbatch FILE",
    ]
    if job.secrets:
        lines.append(f"secret values come from the environment of sbatch: {', '.join(sorted(job.secrets))}")
    return lines

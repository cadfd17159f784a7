"""The task that srun starts on each node of a Slurm job: a supervisor that writes its spec from its command line.

When a task of a step fails, `srun --kill-on-bad-exit` makes Slurm signal every process of the others, data loaders
included. So a task that has failed first tells the others, by a file in the job's folder, to end their ranks as a stop
does, and ends after them. Slurm still ends the others if a supervisor is killed.
"""

from __future__ import annotations

import os
import sys
import time

from torchfab.remote import job_files
from torchfab.remote.job.supervisor import NodeSupervisor
from torchfab.remote.slurm import job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FAILED = "failed"  # the file in the job's folder; each run of a requeued job has its own
_AFTER_GRACE_S = 15.0  # for launchers and the clean-up, after the ranks
_POLL_S = 0.2


def main(argv: list[str]) -> int:
    """Supervise `argv` in this node's folder of the job.

    The environment, which may contain secrets, is passed on and not written to any file.

    Parameters
    ----------
    argv : list of str
        The command line of the process.

    Returns
    -------
    int
        Exit code of the first failing rank, else of the process; at most 1 after a signal from Slurm.
    """
    env = dict(os.environ)
    job_folder = os.path.dirname(os.path.abspath(sys.argv[0]))
    folder = os.path.join(job.node_folder(job_folder, int(env["SLURM_NODEID"])), job.AGENT)
    _write_spec(job_folder, folder, argv, env)
    supervisor = NodeSupervisor([folder], env)
    code = supervisor.run()
    (watch,) = supervisor.watches
    if watch.request.signal:  # ended by Slurm, or by srun after another node failed; srun returns the largest code
        return min(code, 1)
    code = _first_failure(watch.ranks.ranks) or code
    if code:
        _end_others(job_folder, watch.spec)
    return code


def _end_others(job_folder: str, spec: dict[str, Any]) -> None:
    """Tell the tasks of the other nodes to end, and wait until they have."""
    try:
        os.close(os.open(spec["failed"], os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError:  # a full disk: srun ends them
        return
    wait_s = spec["grace_s"] + _AFTER_GRACE_S + (spec.get("after_timeout_s") or 0)
    deadline = time.monotonic() + wait_s
    others = [os.path.join(job.node_folder(job_folder, rank), job.AGENT) for rank in range(spec["nodes"])]
    while time.monotonic() < deadline and not all(_has_ended(folder, spec["restart"]) for folder in others):
        time.sleep(_POLL_S)


def _has_ended(folder: str, restart: int) -> bool:
    """Return whether a task has ended in this run of the job, and left nothing."""
    end = job_files.read_json(os.path.join(folder, job_files.EXIT))
    if not end or end.get("cleaning"):
        return False
    return bool((job_files.read_json(os.path.join(folder, job_files.SPEC)) or {}).get("restart") == restart)


def _write_spec(job_folder: str, folder: str, argv: list[str], env: dict[str, str]) -> None:
    job_files.make_private(folder)
    for sub in ("logs", "errors"):
        job_files.make_private(os.path.join(folder, sub))
    # After a requeue, the logs stay, but the records of the previous run are removed.
    for name in (job_files.STARTED, job_files.RANKS, job_files.RANKS_ENDED, job_files.EXIT):
        if os.path.exists(os.path.join(folder, name)):
            os.unlink(os.path.join(folder, name))
    base = job_files.read_json(os.path.join(job_folder, job.SPEC))
    restart = int(env.get("SLURM_RESTART_COUNT", "0"))
    task_spec = {
        "argv": argv,
        "cwd": os.getcwd(),
        "rank": None,
        "stop_by_file": True,  # Slurm's signals reach every process of the job
        "failed": os.path.join(job_folder, f"{FAILED}-{restart}"),
        "first_rank": int(env["SLURM_NODEID"]) * base["ranks_per_node"],
        "host": env.get("SLURMD_NODENAME", ""),
        "restart": restart,
    }
    job_files.write_json(os.path.join(folder, job_files.SPEC), {**base, **task_spec})


def exit_code(code: int) -> int:
    """Return the exit code of the rank of the job that failed first.

    Parameters
    ----------
    code : int
        srun's own exit code.

    Returns
    -------
    int
        `code` if no rank has failed.
    """
    job_folder = os.path.dirname(os.path.abspath(sys.argv[0]))
    nodes = int((job_files.read_json(os.path.join(job_folder, job.SPEC)) or {}).get("nodes", 0))
    folders = [os.path.join(job.node_folder(job_folder, rank), job.AGENT) for rank in range(nodes)]
    ranks = [rank for folder in folders for rank in job_files.read_json(os.path.join(folder, job_files.RANKS)) or []]
    return _first_failure(ranks) or code


def _first_failure(ranks: list[dict[str, Any]]) -> int:
    failed = [rank for rank in ranks if rank["ended"] and rank["code"]]
    if not failed:
        return 0
    code = int(min(failed, key=lambda rank: float(rank["ended"]))["code"])
    return code if code > 0 else 128 - code

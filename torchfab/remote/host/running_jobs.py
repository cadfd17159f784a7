"""The torchfab jobs with processes on this node, whoever launched them."""

from __future__ import annotations

import os

from torchfab.remote import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def list_jobs() -> list[dict[str, Any]]:
    """List the jobs that run here.

    A process belongs to a job if its environment holds the job's id and it runs in our network namespace: containers
    and rehearsal hosts can share one /proc.

    Returns
    -------
    list of dict
        By id: `job_id`, `processes` (how many), `example` (a description of one), `supervised` (whether a supervisor
        of the job runs here).
    """
    own_namespace = os.readlink("/proc/self/ns/net")
    found: dict[str, list[int]] = {}
    argvs = []
    for pid in procfs.all_pids():
        argvs.append(procfs.command_line(pid))
        job_id = procfs.environment(pid).get(procfs.JOB_ID)
        if job_id and _namespace(pid) == own_namespace and procfs.is_running(pid):
            found.setdefault(job_id, []).append(pid)
    return [_describe_job(job_id, pids, argvs) for job_id, pids in sorted(found.items())]


def _describe_job(job_id: str, pids: list[int], argvs: list[list[str]]) -> dict[str, Any]:
    supervised = any(_is_supervisor(argv, job_id) for argv in argvs)
    return {"job_id": job_id, "processes": len(pids), "supervised": supervised, "example": procfs.describe(pids[0])}


def _is_supervisor(argv: list[str], job_id: str) -> bool:
    return any(f"/jobs/{job_id}/" in arg and arg.endswith("/node.py") for arg in argv[1:4])


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:  # it has ended, or belongs to another user
        return ""

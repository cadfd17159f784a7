"""Jobs of torchfab of which something runs on this node, whoever launched them."""

from __future__ import annotations

import os

from torchfab.remote import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def jobs() -> list[dict[str, Any]]:
    """Return the jobs by id: how many `processes`, one of them as `example`, and whether they are `supervised`.

    A process is ours if it carries a job's id, and runs in our network namespace: containers and rehearsal hosts can
    share one /proc.
    """
    ours = os.readlink("/proc/self/ns/net")
    found: dict[str, list[int]] = {}
    programs = []
    for pid in procfs.all_pids():
        programs.append(procfs.command_line(pid))
        job_id = procfs.environment(pid).get(procfs.JOB_ID)
        if job_id and _namespace(pid) == ours and procfs.is_running(pid):
            found.setdefault(job_id, []).append(pid)
    return [_job(job_id, pids, programs) for job_id, pids in sorted(found.items())]


def _job(job_id: str, pids: list[int], programs: list[list[str]]) -> dict[str, Any]:
    supervised = any(_supervises(words, job_id) for words in programs)
    return {"job_id": job_id, "processes": len(pids), "supervised": supervised, "example": procfs.describe(pids[0])}


def _supervises(words: list[str], job_id: str) -> bool:
    return any(f"/jobs/{job_id}/" in word and word.endswith("/node.py") for word in words[1:4])


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:  # gone, or another user's
        return ""

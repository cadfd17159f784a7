"""Find GPUs that still hold memory of an earlier attempt of a job, in running processes or in ones that have ended.

The driver frees the memory of a process some time after its end, and a process that waits for a device does not end at
once. A job that starts before that runs out of memory.
"""

from __future__ import annotations

import os

from torchfab.remote import procfs
from torchfab.remote.host import gpu_usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Memory of a GPU that no process accounts for. Without any process, a driver takes up to about 0.6 GiB.
UNSEEN_MIB = 1024.0


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Find the GPUs with memory that must be freed before the job's next attempt.

    Parameters
    ----------
    request : dict
        `since` (when the job was first launched; seconds since the epoch), `devices` (indices or UUIDs of the GPUs that
        it uses; empty: all), `name` (of the job).

    Returns
    -------
    dict
        `held`: one entry per GPU, with its `index`, `memory_mib`, and `by`, a description of the process that holds it.
    """
    gpus = [gpu for gpu in gpu_usage.collect()["gpus"] if _is_used(gpu, request["devices"])]
    found = [_held(gpu, float(request["since"]), request["name"]) for gpu in gpus]
    return {"held": [each for each in found if each["by"]]}


def _is_used(gpu: dict[str, Any], devices: list[str]) -> bool:
    return not devices or str(gpu["index"]) in devices or any(gpu["uuid"].startswith(each) for each in devices)


def _held(gpu: dict[str, Any], since: float, name: str) -> dict[str, Any]:
    ours = [each for each in gpu["processes"] if _is_awaited(each["pid"], since, name)]
    unseen = (gpu["memory"] or 0.0) - sum(each["memory"] or 0.0 for each in gpu["processes"])
    by = ", ".join(_describe(each["pid"]) for each in ours)
    if not gpu["processes"] and unseen >= UNSEEN_MIB:
        by = "no visible process"
    memory = sum(each["memory"] or 0.0 for each in ours) if ours else max(0.0, unseen)
    return {"index": gpu["index"], "memory_mib": memory, "by": by}


def _is_awaited(pid: int, since: float, name: str) -> bool:
    """Return whether a process on a GPU has ended, or may be left over from the job: of this user, and not older."""
    if not procfs.is_running(pid):
        return True
    job_id = procfs.environment(pid).get(procfs.JOB_ID, "")
    if job_id:
        return job_id.rpartition("-")[0] == name
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:  # it has just ended
        return True
    return owner == os.getuid() and procfs.started_at(pid) >= since


def _describe(pid: int) -> str:
    return procfs.describe(pid) if procfs.is_running(pid) else f"{pid}, which has ended"

"""Stop a job on a node and prove that no process of it is left."""

from __future__ import annotations

import os
import signal
import time

from torchfab.remote import files, procfs, tmux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

# How long a supervisor may take after its own KILL to record how its process ended: a loaded node is slow, not stuck.
_SUPERVISORS_S = 5.0
# How long processes without a supervisor may take to end after their KILL.
_ESCAPED_S = 10.0


def stop(folder: str, job_id: str, node_rank: int, session: str, grace_s: float) -> dict[str, Any]:
    """End every process of the job on this node: TERM, the grace period, KILL; then prove that none is left.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    job_id : str
        Id of the job.
    node_rank : int
        Rank of this node in the job.
    session : str
        Name of its tmux session.
    grace_s : float
        Seconds between TERM and KILL.

    Returns
    -------
    dict
        `asked`: how many processes got TERM; `killed`: descriptions of those that had to be killed; `left`:
        descriptions of those that still run (an empty list is the proof); `seconds`: duration.
    """
    begun = time.time()
    running = procfs.job_processes(job_id, node_rank)
    supervisors = procfs.running_program(os.path.join(folder, files.BUNDLE))
    unstarted = _remove_secrets_of_unstarted(folder)
    # The folder may have been removed while the job runs.
    if (running or supervisors or unstarted) and os.path.isdir(folder):
        write_stop(folder, begun, grace_s)
    # Each supervisor ends its own processes with TERM and KILL, and records how they ended.
    _end_supervisors(folder, supervisors, begun + grace_s + _SUPERVISORS_S)
    tmux.close_session(session)
    escaped, left = _end_escaped(job_id, node_rank, begun + grace_s)
    killed = [*_killed_by_supervisors(folder), *escaped.values()]
    described = [procfs.describe(pid) for pid in left]
    return {"asked": len(running), "killed": killed, "left": described, "seconds": time.time() - begun}


def write_stop(folder: str, now: float, grace_s: float) -> None:
    """Record in a folder that a stop was requested, and when.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    now : float
        Seconds since the epoch.
    grace_s : float
        Seconds between TERM and KILL.
    """
    path = os.path.join(folder, files.STOP)
    before = files.read_json(path) or {"time": now}  # the first stop counts: what has ended since ended due to it
    try:
        files.write_json(path, {"time": min(now, before["time"]), "grace_s": grace_s})
    except OSError:  # a broken disk must not prevent the stop
        pass


def _remove_secrets_of_unstarted(folder: str) -> bool:
    """Remove the secrets of processes that have not started; return whether there are such processes."""
    found = False
    for name in files.processes(folder):
        if not os.path.exists(os.path.join(folder, name, files.STARTED)):
            found = True
            try:
                os.unlink(os.path.join(folder, name, files.SECRETS))
            except FileNotFoundError:  # it has none, or its supervisor is just reading them
                pass
    return found


def _end_supervisors(folder: str, supervisors: list[int], deadline: float) -> None:
    """Send TERM to the supervisors, including those that are only just starting, and wait for them."""
    while supervisors and time.time() < deadline:
        _signal_all(supervisors, signal.SIGTERM)
        procfs.await_end(supervisors, deadline - time.time())
        supervisors = procfs.running_program(os.path.join(folder, files.BUNDLE))
    # They kill their own processes. One that still runs by now is stuck, or stopped by a signal.
    _signal_all(supervisors, signal.SIGKILL)


def _end_escaped(job_id: str, node_rank: int, kill_at: float) -> tuple[dict[int, str], list[int]]:
    """End processes without a supervisor; return descriptions of the killed ones by pid, and those that still run."""
    signaled: set[int] = set()
    killed: dict[int, str] = {}
    while (found := procfs.job_processes(job_id, node_rank)) and time.time() < kill_at + _ESCAPED_S:
        if time.time() >= kill_at:
            killed = {**{pid: procfs.describe(pid) for pid in found}, **killed}
            _signal_all(found, signal.SIGKILL)
        _signal_all([pid for pid in found if pid not in signaled], signal.SIGTERM)
        signaled.update(found)
        procfs.await_end(found, min(1.0, max(0.05, kill_at - time.time())))
    return killed, found


def _killed_by_supervisors(folder: str) -> list[str]:
    ends = (files.read_json(os.path.join(folder, name, files.EXIT)) for name in files.processes(folder))
    return [text for end in ends if end for text in end.get("killed", [])]


def _signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:  # gone meanwhile
            pass

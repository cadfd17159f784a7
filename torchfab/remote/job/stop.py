"""How a job is stopped on a node, with proof that nothing of it is left."""

from __future__ import annotations

import os
import signal
import time

from torchfab.remote import files, procfs, tmux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

# How long after its own KILL a supervisor gets to write down how its process ended: a loaded node is slow, not stuck.
_SUPERVISORS_S = 5.0
# How long what no supervisor answers for gets to end after its KILL.
_ESCAPED_S = 10.0


def stop(folder: str, job_id: str, node_rank: int, session: str, grace_s: float) -> dict[str, Any]:
    """End every process of the job on this node: TERM, `grace_s` seconds, KILL; then prove that none is left.

    Returns
    -------
    dict
        `asked`: how many processes were asked to end, `killed`: those that had to be killed, described, `left`: those
        that run nevertheless (an empty list is the proof), `seconds`: how long it took.
    """
    begun = time.time()
    found = procfs.job_processes(job_id, node_rank)
    supervisors = procfs.running_program(os.path.join(folder, files.BUNDLE))
    unstarted = _take_secrets_of_unstarted(folder)
    # Somebody may have removed the folder under the running job.
    if (found or supervisors or unstarted) and os.path.isdir(folder):
        write_stop(folder, begun, grace_s)
    # A supervisor asks what is its own to end, waits, kills, and writes down how it ended.
    _end_supervisors(folder, supervisors, begun + grace_s + _SUPERVISORS_S)
    tmux.close_session(session)
    escaped, left = _end_escaped(job_id, node_rank, begun + grace_s)
    killed = [*_killed_by_supervisors(folder), *escaped.values()]
    described = [procfs.describe(pid) for pid in left]
    return {"asked": len(found), "killed": killed, "left": described, "seconds": time.time() - begun}


def write_stop(folder: str, now: float, grace_s: float) -> None:
    """Write into a folder that somebody asked the job to stop, and since when."""
    path = os.path.join(folder, files.STOP)
    before = files.read_json(path) or {"time": now}  # what ended meanwhile ended because of the first stop
    try:
        files.write_json(path, {"time": min(now, before["time"]), "grace_s": grace_s})
    except OSError:  # a disk that is broken keeps nothing from being stopped
        pass


def _take_secrets_of_unstarted(folder: str) -> bool:
    """Remove the secrets of processes that have not started; say whether there are such processes."""
    found = False
    for name in files.processes(folder):
        if not os.path.exists(os.path.join(folder, name, files.STARTED)):
            found = True
            try:
                os.unlink(os.path.join(folder, name, files.SECRETS))
            except FileNotFoundError:  # there are none, or its supervisor is just taking them
                pass
    return found


def _end_supervisors(folder: str, supervisors: list[int], until: float) -> None:
    """Ask the supervisors to end what is theirs, and wait for them; also for one that is only just coming up."""
    while supervisors and time.time() < until:
        _signal_all(supervisors, signal.SIGTERM)
        procfs.await_end(supervisors, until - time.time())
        supervisors = procfs.running_program(os.path.join(folder, files.BUNDLE))
    # They kill what is theirs themselves; one that still runs so long after is stuck, or stopped by a signal.
    _signal_all(supervisors, signal.SIGKILL)


def _end_escaped(job_id: str, node_rank: int, kill_at: float) -> tuple[dict[int, str], list[int]]:
    """End what no supervisor answers for; return what was killed, described, and what runs nevertheless."""
    asked: set[int] = set()
    killed: dict[int, str] = {}
    while (found := procfs.job_processes(job_id, node_rank)) and time.time() < kill_at + _ESCAPED_S:
        if time.time() >= kill_at:
            killed = {**{pid: procfs.describe(pid) for pid in found}, **killed}
            _signal_all(found, signal.SIGKILL)
        _signal_all([pid for pid in found if pid not in asked], signal.SIGTERM)
        asked.update(found)
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

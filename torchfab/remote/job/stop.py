"""Stop a job on a node and prove that no process of it is left."""

from __future__ import annotations

import os
import signal
import time

from torchfab.remote import files, procfs, tmux
from torchfab.remote.job.graceful_end import GracefulEnd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

# How long a supervisor may take after its own KILL to record how its process ended: a loaded node is slow, not stuck.
_SUPERVISORS_S = 5.0
# How long processes without a supervisor may take to end after their KILL.
_ESCAPED_S = 10.0
_POLL_S = 0.05


def end_ranks(folder: str, job_id: str, node_rank: int, grace_s: float) -> dict[str, Any]:
    """End the ranks of the job on this node, but not their launchers, which ranks of other nodes may still need.

    A torchrun agent serves the store of all nodes, and an mpirun that ends takes the ranks of all nodes with it. The
    launchers are held until `stop` ends them; if that never comes, their supervisors kill them after the grace period.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    job_id : str
        Id of the job.
    node_rank : int
        Rank of this node in the job.
    grace_s : float
        Seconds between TERM and KILL.

    Returns
    -------
    dict
        `asked`: how many processes ran. The ranks have ended, or the grace period is over.
    """
    asked = len(procfs.job_processes(job_id, node_rank))
    deadline = time.time() + grace_s
    supervisors = procfs.running_program(os.path.join(folder, files.BUNDLE))
    if supervisors and os.path.isdir(folder):
        write_stop(folder, time.time(), grace_s, ranks_first=True)
        _signal_all(supervisors, signal.SIGTERM)
    processes = [os.path.join(folder, name) for name in files.processes(folder)]
    while time.time() < deadline and any(_is_supervised(each) and may_have_ranks(each) for each in processes):
        time.sleep(_POLL_S)
    return {"asked": asked}


def may_have_ranks(process: str) -> bool:
    """Return whether a process has started and its supervisor has not reported the end of its ranks.

    Parameters
    ----------
    process : str
        The folder of the process.

    Returns
    -------
    bool
    """
    has_ended = any(os.path.exists(os.path.join(process, name)) for name in (files.EXIT, files.RANKS_ENDED))
    return not has_ended and os.path.exists(os.path.join(process, files.STARTED))


def _is_supervised(process: str) -> bool:
    started = files.read_json(os.path.join(process, files.STARTED)) or {}
    return bool(started) and procfs.is_alive(started["supervisor_pid"], started["supervisor_start_time"])


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
        `asked`: how many processes ran; `killed`: descriptions of those that had to be killed; `left`: descriptions of
        those that still run (an empty list is the proof); `seconds`: duration; `rank_ends`: see `rank_ends`.
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
    described = [*(procfs.describe(pid) for pid in left), *_foreign(folder)]
    report = {"asked": len(running), "killed": killed, "left": described, "seconds": time.time() - begun}
    return {**report, "rank_ends": rank_ends([folder])}


def rank_ends(folders: Iterable[str]) -> dict[str, Any]:
    """Return how the ranks of the job ended after the stop.

    Parameters
    ----------
    folders : iterable of str
        The job's folders on its nodes.

    Returns
    -------
    dict
        `ended`: how many ended by themselves; `seconds`: how long the slowest of them took; `killed`: how many had to
        be killed.
    """
    ends = [end.get("rank_ends") or {} for folder in folders for end in _ends(folder)]
    counts = {name: sum(end.get(name, 0) for end in ends) for name in ("ended", "killed")}
    return {**counts, "seconds": max((end.get("seconds", 0.0) for end in ends), default=0.0)}


def _foreign(folder: str) -> list[str]:
    """Describe the processes of other users that the supervisors could not end, and that still run."""
    found = [each for end in _ends(folder) for each in end.get("foreign", [])]
    return [each["text"] for each in found if procfs.is_alive(each["pid"], each["start_time"])]


def _ends(folder: str) -> list[dict[str, Any]]:
    found = (files.read_json(os.path.join(folder, name, files.EXIT)) for name in files.processes(folder))
    return [end for end in found if end]


def write_stop(folder: str, now: float, grace_s: float, ranks_first: bool = False) -> bool:
    """Record in a folder that a stop was requested, and when.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    now : float
        Seconds since the epoch.
    grace_s : float
        Seconds between TERM and KILL.
    ranks_first : bool
        Launchers must not end yet, even if their ranks have.

    Returns
    -------
    bool
        Whether it is recorded.
    """
    path = os.path.join(folder, files.STOP)
    before = files.read_json(path) or {"time": now}  # the first stop counts: what has ended since ended due to it
    try:
        files.write_json(path, {"time": min(now, before["time"]), "grace_s": grace_s, "ranks_first": ranks_first})
    except OSError:  # a broken disk must not prevent the stop
        return False
    return True


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
    ending = GracefulEnd(_is_rank, may_stop=False)
    killed: dict[int, str] = {}
    while (found := procfs.job_processes(job_id, node_rank)) and time.time() < kill_at + _ESCAPED_S:
        if time.time() >= kill_at:
            killed = {**{pid: procfs.describe(pid) for pid in found}, **killed}
            _signal_all(found, signal.SIGKILL)
            ending.hold.release()
        ending.advance(_topmost(found))
        procfs.await_end(found, min(1.0, max(0.05, kill_at - time.time())))
    return killed, found


def _topmost(pids: list[int]) -> list[int]:
    """Return the processes whose parents are not among them."""
    parents = procfs.parents()
    return [pid for pid in pids if parents.get(pid) not in pids]


def _is_rank(pid: int) -> bool:
    return "RANK" in procfs.environment(pid)


def _killed_by_supervisors(folder: str) -> list[str]:
    return [text for end in _ends(folder) for text in end.get("killed", [])]


def _signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:  # gone meanwhile
            pass

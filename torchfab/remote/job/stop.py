"""Stop a job on a node and verify that no process of it is left."""

from __future__ import annotations

import os
import signal
import time

from torchfab.remote import job_files, procfs, tmux
from torchfab.remote.job import containment, hooks, leftovers
from torchfab.remote.job.graceful_end import GracefulEnd
from torchfab.remote.job.process_search import Search, identify, job_processes
from torchfab.remote.job.status import unended

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

# How long a supervisor may take after its own KILL to record how its process ended: a loaded node is slow.
_SUPERVISORS_S = 5.0
# How long processes without a supervisor may take to end after their KILL.
_ESCAPED_S = 10.0
_POLL_S = 0.05
# How long the newest processes are killed as they appear, if some fork and exit faster than a search takes.
_CHASE_S = 0.2


def end_ranks(folder: str, job_id: str, node_rank: int, grace_s: float) -> dict[str, Any]:
    """End the ranks of the job on this node, but not their launchers, which ranks of other nodes may still need.

    A torchrun agent serves the store of all nodes, and the end of mpirun ends the ranks of all nodes. The launchers are
    held until `stop` ends them; without a `stop`, their supervisors kill them after the grace period.

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
        `asked`: number of processes that ran. On return, the ranks have ended, or the grace period is over.
    """
    asked = len(job_processes(job_id, node_rank, containment.groups(folder)))
    deadline = time.monotonic() + grace_s
    supervisors = procfs.running_program(os.path.join(folder, job_files.BUNDLE))
    if supervisors and os.path.isdir(folder):
        write_stop(folder, time.time(), grace_s, ranks_first=True)
        _signal_all(supervisors, signal.SIGTERM)
    processes = [os.path.join(folder, name) for name in job_files.processes(folder)]
    while time.monotonic() < deadline and any(_is_supervised(each) and may_have_ranks(each) for each in processes):
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
    has_ended = any(os.path.exists(os.path.join(process, name)) for name in (job_files.EXIT, job_files.RANKS_ENDED))
    return not has_ended and os.path.exists(os.path.join(process, job_files.STARTED))


def _is_supervised(process: str) -> bool:
    started = job_files.read_json(os.path.join(process, job_files.STARTED)) or {}
    return bool(started) and procfs.is_alive(started["supervisor_pid"], started["supervisor_start_time"])


def stop(folder: str, job_id: str, node_rank: int, session: str, grace_s: float) -> dict[str, Any]:
    """End every process of the job on this node: TERM, the grace period, KILL; then verify that none is left.

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
        those that still run; `proof`: the source that confirms this, "cgroup" or "proc"; `seconds`: duration;
        `rank_ends`: see `rank_ends`; `cleared`: see `leftovers.clear`.
    """
    begun, clock = time.time(), time.monotonic()
    running = job_processes(job_id, node_rank, containment.groups(folder))
    supervisors = procfs.running_program(os.path.join(folder, job_files.BUNDLE))
    ended_before = _ended(folder)
    unstarted = _remove_secrets_of_unstarted(folder)
    # The folder may have been removed while the job runs.
    if (running or supervisors or unstarted) and os.path.isdir(folder):
        write_stop(folder, begun, grace_s)
    # Each supervisor ends its own processes with TERM and KILL, and records how they ended.
    _end_supervisors(folder, supervisors, clock + grace_s + _SUPERVISORS_S + hooks.stop_s(folder))
    tmux.close_session(session)
    escaped, left = _end_escaped(Search(job_id, node_rank, containment.groups(folder)), clock + grace_s)
    left += [each["pid"] for each in unended(folder) if each["pid"] not in left]
    proof = "cgroup" if containment.is_proof(folder) else "proc"
    containment.remove_groups(folder)
    return {
        "asked": len(running),
        "killed": [*_killed_by_supervisors(folder), *escaped.values()],
        "left": [identify(pid)["text"] for pid in left],
        "proof": proof,
        "seconds": time.monotonic() - clock,
        "rank_ends": rank_ends([folder]),
        "cleared": _cleared(folder, ended_before),
    }


def _ended(folder: str) -> set[str]:
    """Return the names of the processes whose leftovers the supervisors have cleared."""
    ends = {
        name: job_files.read_json(os.path.join(folder, name, job_files.EXIT)) or {}
        for name in job_files.processes(folder)
    }
    return {name for name, end in ends.items() if end and not end.get("cleaning")}


def _cleared(folder: str, ended_before: set[str]) -> dict[str, int]:
    """Remove leftovers outside the job's folder; include those that the supervisors removed during the stop."""
    total = leftovers.clear(folder)
    for name in _ended(folder) - ended_before:
        end = job_files.read_json(os.path.join(folder, name, job_files.EXIT)) or {}
        for what, count in (end.get("cleared") or {}).items():
            total[what] = total.get(what, 0) + count
    return total


def rank_ends(folders: Iterable[str]) -> dict[str, Any]:
    """Return how the ranks of the job ended after the stop.

    Parameters
    ----------
    folders : iterable of str
        The job's folders on its nodes.

    Returns
    -------
    dict
        `ended`: number that ended by themselves; `seconds`: time that the slowest of them took; `killed`: number that
        had to be killed; `unfinished`: number of those that were still in their signal handler; `writing`: the files
        that these had open for writing.
    """
    ends = [end.get("rank_ends") or {} for folder in folders for end in _ends(folder)]
    counts = {name: sum(end.get(name, 0) for end in ends) for name in ("ended", "killed", "unfinished")}
    seconds = max((end.get("seconds", 0.0) for end in ends), default=0.0)
    return {**counts, "seconds": seconds, "writing": [path for end in ends for path in end.get("writing", [])]}


def _ends(folder: str) -> list[dict[str, Any]]:
    found = (job_files.read_json(os.path.join(folder, name, job_files.EXIT)) for name in job_files.processes(folder))
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
        Whether launchers must not end yet, even if their ranks have.

    Returns
    -------
    bool
        Whether it is recorded.
    """
    path = os.path.join(folder, job_files.STOP)
    before = job_files.read_json(path) or {}  # the first stop counts: it ended the processes that ended since
    stop = {"time": min(now, before.get("time", now)), "grace_s": grace_s, "ranks_first": ranks_first}
    try:
        job_files.write_json(path, {**stop, "clock": before.get("clock") or procfs.clock()})
    except OSError:  # a broken disk must not prevent the stop
        return False
    return True


def _remove_secrets_of_unstarted(folder: str) -> bool:
    """Remove the secrets of processes that have not started; return whether there are such processes."""
    found = False
    for name in job_files.processes(folder):
        if not os.path.exists(os.path.join(folder, name, job_files.STARTED)):
            found = True
            try:
                os.unlink(os.path.join(folder, name, job_files.SECRETS))
            except FileNotFoundError:  # it has no secrets, or its supervisor is just reading them
                pass
    return found


def _end_supervisors(folder: str, supervisors: list[int], deadline: float) -> None:
    """Send TERM to the supervisors, including those that are only just starting, and wait for them."""
    while supervisors and time.monotonic() < deadline:
        _signal_all(supervisors, signal.SIGTERM)
        procfs.await_end(supervisors, deadline - time.monotonic())
        supervisors = procfs.running_program(os.path.join(folder, job_files.BUNDLE))
    # They kill their own processes. A supervisor that still runs now is stuck, or stopped by a signal.
    _signal_all(supervisors, signal.SIGKILL)


def _end_escaped(search: Search, kill_at: float) -> tuple[dict[int, str], list[int]]:
    """End processes without a supervisor; return descriptions of those killed, by pid, and those that still run."""
    ending = GracefulEnd(_is_rank, may_stop=False)
    killed: dict[int, str] = {}
    while (found := search.find()) and time.monotonic() < kill_at + _ESCAPED_S:
        if time.monotonic() >= kill_at:
            reached = [pid for pid in found if not procfs.is_foreign(pid) or search.is_grouped(pid)]
            if not reached:
                break  # processes of other users cannot be signaled
            described = {pid: procfs.describe(pid) for pid in reached}
            _kill(search, reached, again=bool(killed))
            killed = {**described, **killed}
            ending.hold.release()
        ending.advance(_topmost(found))
        procfs.await_end(found, min(1.0, max(_POLL_S, kill_at - time.monotonic())))
    return killed, found


def _kill(search: Search, pids: list[int], again: bool) -> None:
    for group in search.groups:
        group.kill()
    _signal_all(pids, signal.SIGKILL)
    if again:  # they fork faster than they are found, or wait for a disk
        search.chase(_CHASE_S, kill=True)


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
        except OSError:  # it has ended
            pass

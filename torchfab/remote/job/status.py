"""Determine the status of a job on a node from its files and from /proc."""

from __future__ import annotations

import os
import re
import time

from torchfab.remote import job_files, procfs
from torchfab.remote.job import containment, log_files
from torchfab.remote.job.process_search import job_processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TAIL_BYTES = 16 * 1024


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Return the job's status on this node.

    Parameters
    ----------
    request : dict
        `node_dir`, `job_id`, `node_rank`.

    Returns
    -------
    dict
        As `status` returns it.
    """
    return status(job_files.folder_of(request), request["job_id"], request["node_rank"])


def status(folder: str, job_id: str, node_rank: int, alive: bool | None = None) -> dict[str, Any]:
    """Return the job's status on this node.

    The state of a process is `starting`, `running`, `succeeded`, `failed`, `stopped` (it ended after a stop was
    requested) or `lost` (it ended, or its machine restarted, and no supervisor was left to record its end).

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    job_id : str
        Id of the job.
    node_rank : int
        Rank of this node in the job.
    alive : bool, optional
        Whether supervisors can run. Default: search for them on this machine, which must be the node of the folder.

    Returns
    -------
    dict
        `processes`: one entry per process, each with its ranks and its last log line; `now`; `exists`: whether the
        folder does; `stop_asked`: time of the stop request, or None; `left`: leftover processes, if the state of one is
        `lost`, or those that could not be ended.
    """
    stop = job_files.read_json(os.path.join(folder, job_files.STOP))
    entries = [_process_status(os.path.join(folder, name), name, stop, alive) for name in job_files.processes(folder)]
    answer: dict[str, Any] = {"processes": entries, "now": time.time(), "exists": os.path.isdir(folder)}
    answer["stop_asked"] = stop["time"] if stop else None
    if alive is None and any(entry["state"] == "lost" for entry in entries):
        answer["left"] = [procfs.describe(pid) for pid in job_processes(job_id, node_rank, containment.groups(folder))]
    elif alive is None and (left := unended(folder)):
        answer["left"] = [each["text"] for each in left]
    return answer


def unended(folder: str) -> list[dict[str, Any]]:
    """Return the processes that the supervisors could not end and that still run.

    Parameters
    ----------
    folder : str
        The job's folder on this node.

    Returns
    -------
    list of dict
        As `torchfab.remote.job.process_search.identify` returns them.
    """
    ends = (
        job_files.read_json(os.path.join(folder, name, job_files.EXIT)) or {} for name in job_files.processes(folder)
    )
    found = [each for end in ends for each in end.get("foreign", [])]
    return [each for each in found if procfs.is_alive(each["pid"], each["start_time"])]


def has_ended(folder: str) -> bool:
    """Check whether every process of the job on this node has ended.

    Parameters
    ----------
    folder : str
        The job's folder on this node.

    Returns
    -------
    bool
        True also when the folder no longer exists.
    """
    states = process_states(folder)
    return not os.path.isdir(folder) or (bool(states) and not {"starting", "running"} & set(states.values()))


def process_states(folder: str) -> dict[str, str]:
    """Return the state of every process of the job on this node, as its supervisor has recorded it.

    Parameters
    ----------
    folder : str
        The job's folder on this node.

    Returns
    -------
    dict of str to str
        As in `status`, by the name of the process.
    """
    states = {}
    stop = job_files.read_json(os.path.join(folder, job_files.STOP))
    for name in job_files.processes(folder):
        started = job_files.read_json(os.path.join(folder, name, job_files.STARTED)) or {}
        ended = job_files.read_json(os.path.join(folder, name, job_files.EXIT))
        states[name] = _state(os.path.join(folder, name), started, ended, stop)[0]
    return states


def _process_status(folder: str, name: str, stop: dict[str, Any] | None, alive: bool | None = None) -> dict[str, Any]:
    spec = job_files.read_json(os.path.join(folder, job_files.SPEC)) or {}
    started = job_files.read_json(os.path.join(folder, job_files.STARTED)) or {}
    ended = job_files.read_json(os.path.join(folder, job_files.EXIT))
    state, reason = _state(folder, started, ended, stop, alive)
    ranks = read_ranks(folder)
    reported = reported_failures(os.path.join(folder, job_files.OUTPUT)) if state == "failed" else []
    _fill_codes(ranks, state, reported)
    return {
        "name": name,
        "state": state,
        "reason": reason,
        "pid": started.get("pid"),
        "started": started.get("time"),
        "ended": ended["time"] if ended and state != "running" else None,
        "code": ended["code"] if ended else None,
        "signal": ended["signal"] if ended else None,
        "warned": ended.get("warned") if ended else None,
        "ranks": ranks,
        "last_line": _last_line(log_files.find(folder, spec), ranks),
        "reported": reported,
    }


def read_ranks(folder: str) -> list[dict[str, Any]]:
    """Return the ranks of a process, as its supervisor has found them so far.

    Parameters
    ----------
    folder : str
        The process's folder.

    Returns
    -------
    list of dict
        The entries of ranks.json.
    """
    spec = job_files.read_json(os.path.join(folder, job_files.SPEC)) or {}
    started = job_files.read_json(os.path.join(folder, job_files.STARTED)) or {}
    ended = job_files.read_json(os.path.join(folder, job_files.EXIT))
    return job_files.read_json(os.path.join(folder, job_files.RANKS)) or _own_rank(spec, started, ended)


def _fill_codes(ranks: list[dict[str, Any]], state: str, reported: list[dict[str, int]]) -> None:
    """Fill in the exit codes of ranks that their launcher reaped first, from the launcher's own report."""
    codes = {each["rank"]: each["code"] for each in reported}
    for rank in ranks:
        if rank["ended"] and rank["code"] is None:
            rank["code"] = 0 if state == "succeeded" else codes.get(rank["rank"])


def _own_rank(spec: dict[str, Any], started: dict[str, Any], ended: dict[str, Any] | None) -> list[dict[str, Any]]:
    # A process that is itself a rank and ended before the supervisor could record the rank.
    if spec.get("rank") is None or not started:
        return []
    rank = {"rank": spec["rank"], "local_rank": None, "world_size": None, "attempt": 0, "pid": started["pid"]}
    end = {"ended": ended["time"], "code": ended["code"]} if ended else {"ended": None, "code": None}
    return [{**rank, "start_time": started["start_time"], "started": started["time"], **end}]


def _state(
    folder: str,
    started: dict[str, Any],
    ended: dict[str, Any] | None,
    stop: dict[str, Any] | None,
    alive: bool | None = None,
) -> tuple[str, str]:
    supervised = _is_supervised(started) if alive is None else alive
    if ended and ended.get("error"):
        return "failed", ended["error"]
    if ended and not (ended.get("cleaning") and supervised):
        return _end_state(ended, stop), ""
    if not started:
        return ("stopped", "before it had started") if stop else _unstarted_state(folder, alive)
    if supervised:
        return "running", ""
    if alive is None and started["boot_id"] != procfs.boot_id():
        return "lost", "the node was restarted"
    return "lost", "its supervisor was killed"


def _unstarted_state(folder: str, alive: bool | None) -> tuple[str, str]:
    """Return the state of a process that has not started: `lost` if its supervisor can no longer start it."""
    held_by = (job_files.read_json(os.path.join(folder, job_files.SPEC)) or {}).get("held_by") or {}
    if alive is None and held_by.get("boot_id", procfs.boot_id()) != procfs.boot_id():
        return "lost", "the node was restarted before it had started"
    supervisor = job_files.read_json(os.path.join(folder, job_files.READY))
    if alive is None and isinstance(supervisor, int) and not procfs.is_running(supervisor):
        return "lost", "its supervisor was killed before it had started"
    return "starting", ""


def _end_state(ended: dict[str, Any], stop: dict[str, Any] | None) -> str:
    if ended["code"] == 0:
        return "succeeded"
    return "stopped" if stop and _is_before(stop, ended) else "failed"


def _is_before(stop: dict[str, Any], ended: dict[str, Any]) -> bool:
    """Return whether a stop was requested before a process ended, even if the clock was set in between."""
    stop_clock, end_clock = stop.get("clock"), ended.get("clock")
    if stop_clock and end_clock and stop_clock[0] == end_clock[0]:
        return bool(stop_clock[1] <= end_clock[1])
    return bool(stop["time"] <= ended["time"])


def _is_supervised(started: dict[str, Any]) -> bool:
    same_boot = started.get("boot_id") == procfs.boot_id()
    return same_boot and procfs.is_alive(started["supervisor_pid"], started["supervisor_start_time"])


def _last_line(logs: list[log_files.LogFile], ranks: list[dict[str, Any]]) -> dict[str, Any] | None:
    written = [log for log in logs if log_files.size(log.full_path)]
    if not written:
        return None
    by_ranks = [log for log in written if isinstance(log.label(ranks), int)]  # preferred to the launcher's own report
    newest = max(by_ranks or written, key=lambda log: os.stat(log.full_path).st_mtime)
    lines = [line for line in tail(newest.full_path).splitlines() if any(map(str.isalnum, line))]
    text = lines[-1] if lines else ""
    return {"time": os.stat(newest.full_path).st_mtime, "text": text, "label": newest.label(ranks)}


def tail(path: str) -> str:
    """Return the last lines of a file.

    Parameters
    ----------
    path : str
        The file.

    Returns
    -------
    str
        The complete lines in the last 16 KiB; empty when there is no such file.
    """
    try:
        start = max(0, log_files.size(path) - _TAIL_BYTES)
        with open(path, "rb") as file:
            file.seek(start)
            text = file.read(_TAIL_BYTES).decode(errors="replace").replace("\r", "\n")
    except OSError:
        return ""
    return drop_partial_line(text) if start else text


def drop_partial_line(text: str) -> str:
    """Drop the incomplete first line of a text that was cut off at its beginning.

    Secrets are redacted in the texts that are sent, and half of a secret would not be recognized.

    Parameters
    ----------
    text : str
        The end of a longer text.

    Returns
    -------
    str
        The text after the first newline; without a newline, after the first blank; empty without either.
    """
    for blank in "\n ":
        _, found, rest = text.partition(blank)
        if found:
            return rest
    return ""


def reported_failures(path: str) -> list[dict[str, int]]:
    """Return the ranks that torchrun's report names as failed.

    Parameters
    ----------
    path : str
        The output of torchrun; the report is at its end.

    Returns
    -------
    list of dict
        As `failures_in` returns them.
    """
    return parse_failures(tail(path))


def parse_failures(text: str) -> list[dict[str, int]]:
    """Return the ranks that torchrun's report names as failed.

    Its blocks contain `rank : 3 (local_rank: 1)` and, two lines later, `exitcode : 7 (pid: 4711)`. They are the
    fallback for a rank that ended before it was found in /proc.

    Parameters
    ----------
    text : str
        Output of torchrun.

    Returns
    -------
    list of dict
        `rank` and `code`, the root cause first.
    """
    return [{"rank": each["rank"], "code": each["code"]} for each in reported_ranks(text)]


def reported_ranks(text: str) -> list[dict[str, Any]]:
    """Return the ranks that torchrun's report names as failed, with all numbers that it contains.

    Parameters
    ----------
    text : str
        Output of torchrun.

    Returns
    -------
    list of dict
        `rank`, `local_rank`, `code` and `pid`, the root cause first; None for a number that is missing.
    """
    failures: list[dict[str, Any]] = []
    root: list[dict[str, Any]] = []
    target, rank, local_rank = failures, None, None
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name.startswith("Root Cause"):
            target = root
        elif name == "rank":
            rank, local_rank = _leading_number(value), _number_after("local_rank: ", value)
        elif name == "exitcode" and rank is not None:
            code, pid = _leading_number(value), _number_after("pid: ", value)
            target += [] if code is None else [{"rank": rank, "local_rank": local_rank, "code": code, "pid": pid}]
            rank = None
    return root + failures


def _leading_number(text: str) -> int | None:
    # A script can print text that only resembles a report.
    match = re.match(r"-?[0-9]{1,9}\b", text)
    return int(match[0]) if match else None


def _number_after(name: str, text: str) -> int | None:
    match = re.search(rf"\({re.escape(name)}([0-9]{{1,9}})\)", text)
    return int(match[1]) if match else None

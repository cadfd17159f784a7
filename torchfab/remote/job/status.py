"""How a job is on a node."""

from __future__ import annotations

import os
import re
import time

from torchfab.remote import files, procfs
from torchfab.remote.job import log_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TAIL_BYTES = 16 * 1024


def answer_status(request: dict[str, Any]) -> dict[str, Any]:
    """Say how the job is here."""
    return status(files.folder_of(request), request["job_id"], request["node_rank"])


def status(folder: str, job_id: str, node_rank: int, alive: bool | None = None) -> dict[str, Any]:
    """Return how the job is on this node: one entry per process, each with its ranks, and the last log line.

    The state of a process is `starting`, `running`, `succeeded`, `failed`, `stopped` (it ended after somebody asked the
    job to stop) or `lost` (it ended, or its machine restarted, and nobody was left to write down how).
    Supervisors are looked for here, unless `alive` says whether they can run: where the folder is another machine's.
    """
    stop = files.read_json(os.path.join(folder, files.STOP))
    entries = [_process_status(os.path.join(folder, name), name, stop, alive) for name in files.processes(folder)]
    answer: dict[str, Any] = {"processes": entries, "now": time.time(), "exists": os.path.isdir(folder)}
    answer["stop_asked"] = stop["time"] if stop else None
    if alive is None and any(entry["state"] == "lost" for entry in entries):
        answer["left"] = [procfs.describe(pid) for pid in procfs.job_processes(job_id, node_rank)]
    return answer


def has_ended(folder: str) -> bool:
    """Say whether every process of the job on this node has ended, or the job's folder is gone."""
    states = []
    stop = files.read_json(os.path.join(folder, files.STOP))
    for name in files.processes(folder):
        started = files.read_json(os.path.join(folder, name, files.STARTED)) or {}
        states.append(_state(started, files.read_json(os.path.join(folder, name, files.EXIT)), stop)[0])
    return not os.path.isdir(folder) or (bool(states) and not {"starting", "running"} & set(states))


def _process_status(folder: str, name: str, stop: dict[str, Any] | None, alive: bool | None = None) -> dict[str, Any]:
    spec = files.read_json(os.path.join(folder, files.SPEC)) or {}
    started = files.read_json(os.path.join(folder, files.STARTED)) or {}
    ended = files.read_json(os.path.join(folder, files.EXIT))
    state, reason = _state(started, ended, stop, alive)
    ranks = ranks_of(folder)
    reported = reported_failures(os.path.join(folder, files.OUTPUT)) if state == "failed" else []
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


def ranks_of(folder: str) -> list[dict[str, Any]]:
    """Return the ranks of a process, as its supervisor has seen them so far."""
    spec = files.read_json(os.path.join(folder, files.SPEC)) or {}
    started = files.read_json(os.path.join(folder, files.STARTED)) or {}
    ended = files.read_json(os.path.join(folder, files.EXIT))
    return files.read_json(os.path.join(folder, files.RANKS)) or _own_rank(spec, started, ended)


def _fill_codes(ranks: list[dict[str, Any]], state: str, reported: list[dict[str, int]]) -> None:
    """Fill in exit codes that a launcher had taken before the supervisor could read them, from what it reports."""
    codes = {each["rank"]: each["code"] for each in reported}
    for rank in ranks:
        if rank["ended"] and rank["code"] is None:
            rank["code"] = 0 if state == "succeeded" else codes.get(rank["rank"])


def _own_rank(spec: dict[str, Any], started: dict[str, Any], ended: dict[str, Any] | None) -> list[dict[str, Any]]:
    # A process that is a rank itself and ended before anyone could look at it.
    if spec.get("rank") is None or not started:
        return []
    rank = {"rank": spec["rank"], "local_rank": None, "world_size": None, "attempt": 0, "pid": started["pid"]}
    end = {"ended": ended["time"], "code": ended["code"]} if ended else {"ended": None, "code": None}
    return [{**rank, "start_time": started["start_time"], "started": started["time"], **end}]


def _state(
    started: dict[str, Any], ended: dict[str, Any] | None, stop: dict[str, Any] | None, alive: bool | None = None
) -> tuple[str, str]:
    supervised = _supervised(started) if alive is None else alive
    if ended and ended.get("error"):
        return "failed", ended["error"]
    if ended and not (ended.get("cleaning") and supervised):
        return _end_state(ended, stop), ""
    if not started:
        return ("stopped", "before it had started") if stop else ("starting", "")
    if supervised:
        return "running", ""
    if alive is None and started["boot_id"] != procfs.boot_id():
        return "lost", "the node was restarted"
    return "lost", "its supervisor was killed"


def _end_state(ended: dict[str, Any], stop: dict[str, Any] | None) -> str:
    if ended["code"] == 0:
        return "succeeded"
    return "stopped" if stop and stop["time"] <= ended["time"] else "failed"


def _supervised(started: dict[str, Any]) -> bool:
    same_boot = started.get("boot_id") == procfs.boot_id()
    return same_boot and procfs.is_alive(started["supervisor_pid"], started["supervisor_start_time"])


def _last_line(logs: list[log_files.LogFile], ranks: list[dict[str, Any]]) -> dict[str, Any] | None:
    written = [log for log in logs if log_files.size(log.full_path)]
    if not written:
        return None
    newest = max(written, key=lambda log: os.stat(log.full_path).st_mtime)
    lines = [line for line in tail(newest.full_path).splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    return {"time": os.stat(newest.full_path).st_mtime, "text": text, "label": newest.label(ranks)}


def tail(path: str) -> str:
    """Return the lines in the last 16 KiB of a file; empty when there is none."""
    try:
        start = max(0, log_files.size(path) - _TAIL_BYTES)
        with open(path, "rb") as file:
            file.seek(start)
            text = file.read(_TAIL_BYTES).decode(errors="replace").replace("\r", "\n")
    except OSError:
        return ""
    return whole(text) if start else text


def whole(text: str) -> str:
    """Return a text that was cut off at its beginning from its first whole line on, or word, where it has no lines.

    Secrets are hidden in what is sent: half of one would not be known as one.
    """
    for blank in "\n ":
        _, found, rest = text.partition(blank)
        if found:
            return rest
    return ""


def reported_failures(path: str) -> list[dict[str, int]]:
    """Return the ranks that torchrun's own report, at the end of its output in a file, names as failed."""
    return failures_in(tail(path))


def failures_in(text: str) -> list[dict[str, int]]:
    """Return the ranks that torchrun's own report names as failed, the root cause first.

    Its blocks read `rank : 3 (local_rank: 1)` and, two lines later, `exitcode : 7 (pid: 4711)`. They are the fall-back
    for a rank that lived too short to be seen in /proc.
    """
    failures: list[dict[str, int]] = []
    root: list[dict[str, int]] = []
    into, rank = failures, None
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name.startswith("Root Cause"):
            into = root
        elif name == "rank":
            rank = _leading_number(value)
        elif name == "exitcode" and rank is not None:
            code = _leading_number(value)
            into += [] if code is None else [{"rank": rank, "code": code}]
            rank = None
    return root + failures


def _leading_number(text: str) -> int | None:
    # A script can print what looks like a report and is none.
    match = re.match(r"-?[0-9]{1,9}\b", text)
    return int(match[0]) if match else None

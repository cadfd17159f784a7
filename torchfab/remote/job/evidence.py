"""What a node knows of how its part of a job went: the ends of its logs, error files, what the kernel said, its disks.

All of it is bounded: of a log of 10 GB the end alone is read and sent.
"""

from __future__ import annotations

import os
import time

from torchfab.remote import files, procfs
from torchfab.remote.host import kernel_log
from torchfab.remote.job import log_files, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LONGEST_TAIL, _ALL_TAILS, _SHORTEST_TAIL = 32 * 1024, 256 * 1024, 2 * 1024
_LONGEST_REPORT = 256 * 1024
_MOST_REPORTS = 64


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Say how the job is here, as `status` does, and with it what tells why."""
    folder = files.folder_of(request)
    found = status.status(folder, request["job_id"], request["node_rank"])
    return {**found, "evidence": {**gather(folder), **_of_machine(folder, found)}}


def gather(folder: str) -> dict[str, Any]:
    """Return what lies in a job's folder of one node.

    Returns
    -------
    dict
        `ends`: what the supervisor of each process wrote at its end; `logs`: label, path, size, written (seconds since
        the epoch) and the end of the text; `reports`: what the ranks, or torchrun, left in error files.
    """
    names = files.processes(folder)
    logs = [(log, label) for name in names for log, label in _last_logs(os.path.join(folder, name))]
    share = max(_SHORTEST_TAIL, min(_LONGEST_TAIL, _ALL_TAILS // max(1, len(logs))))
    return {
        "ends": {name: _end(os.path.join(folder, name)) for name in names},
        "logs": [_log(log, label, share) for log, label in logs if log_files.size(log.full_path)],
        "reports": [report for name in names for report in _reports(os.path.join(folder, name))][:_MOST_REPORTS],
    }


def _of_machine(folder: str, found: dict[str, Any]) -> dict[str, Any]:
    starts = [process["started"] for process in found["processes"] if process["started"]]
    return {
        "kernel": kernel_log.said(min(starts, default=time.time())),
        "disks": [_disk(path) for path in (folder, *_workdirs(folder), "/dev/shm", "/tmp") if os.path.isdir(path)],
        "halted": [name for process in found["processes"] for name in _halted(folder, process)],
    }


def _end(folder: str) -> dict[str, Any]:
    end = files.read_json(os.path.join(folder, files.EXIT)) or {}
    names = ("asked", "killed", "left", "error", "oom_kills", "time")
    return {name: end[name] for name in names if name in end}


def _last_logs(folder: str) -> list[tuple[log_files.LogFile, int | str]]:
    """Return the log files of a process, those of its ranks of the last attempt alone."""
    ranks = files.read_json(os.path.join(folder, files.RANKS)) or []
    found = log_files.find(folder, files.read_json(os.path.join(folder, files.SPEC)) or {})
    last = max((log.attempt for log in found), default=0)
    return [(log, log.label(ranks)) for log in found if log.local_rank is None or log.attempt == last]


def _log(log: log_files.LogFile, label: int | str, share: int) -> dict[str, Any]:
    size = log_files.size(log.full_path)
    try:
        with open(log.full_path, "rb") as file:
            file.seek(max(0, size - share))
            text = file.read(share).decode(errors="replace")
            text = status.whole(text) if size > share else text
        written = os.stat(log.full_path).st_mtime
    except OSError:  # removed meanwhile
        text, written = "", 0.0
    return {"label": label, "path": log.full_path, "size": size, "written": written, "text": text}


# ---- error files


def _reports(folder: str) -> list[dict[str, Any]]:
    """Return what lies in the error files of a process: of torchelastic's format, by the rank or by torchrun."""
    ranks = files.read_json(os.path.join(folder, files.RANKS)) or []
    spec = files.read_json(os.path.join(folder, files.SPEC)) or {}
    found = []
    for log in log_files.find(folder, spec):
        if log.local_rank is not None and log.path.endswith("stderr.log"):
            path = os.path.join(os.path.dirname(log.full_path), "error.json")
            found.append(_report(path, log.label(ranks), log.attempt))
    own = spec.get("rank")
    found.append(_report(os.path.join(folder, "errors", "error.json"), log_files.AGENT if own is None else own, 0))
    return [report for report in found if report]


def _report(path: str, label: int | str, attempt: int) -> dict[str, Any]:
    if log_files.size(path) > _LONGEST_REPORT:
        return {}
    told = (files.read_json(path) or {}) if os.path.exists(path) else {}
    message = told.get("message", "") if isinstance(told, dict) else ""
    more = message.get("extraInfo") if isinstance(message, dict) else {}
    text = message.get("message", "") if isinstance(message, dict) else message
    if not text:
        return {}
    stack = more.get("py_callstack") if isinstance(more, dict) else ""
    return {"label": label, "attempt": attempt, "message": str(text)[:4096], "traceback": str(stack or "")[-16384:]}


# ---- the machine


def _workdirs(folder: str) -> list[str]:
    specs = (files.read_json(os.path.join(folder, name, files.SPEC)) for name in files.processes(folder))
    return list(dict.fromkeys(str(spec["cwd"]) for spec in specs if spec))


def _disk(path: str) -> dict[str, Any]:
    try:
        told = os.statvfs(path)
    except OSError:
        return {"path": path, "free": None, "size": None}
    return {"path": path, "free": told.f_bavail * told.f_frsize, "size": told.f_blocks * told.f_frsize}


def _halted(folder: str, process: dict[str, Any]) -> list[str]:
    """Return what of a process runs, and was stopped by a signal (SIGSTOP) or by a debugger: itself, or its ranks."""
    ranks = [(f"rank {rank['rank']}", rank["pid"], rank["start_time"]) for rank in process["ranks"]]
    started = files.read_json(os.path.join(folder, process["name"], files.STARTED)) or {}
    if started and started["pid"] not in [pid for _, pid, _ in ranks]:
        ranks.append((process["name"], started["pid"], started["start_time"]))
    return [name for name, pid, start in ranks if procfs.is_alive(pid, start) and _is_halted(pid)]


def _is_halted(pid: int) -> bool:
    return "".join(procfs.stat_fields(pid)[:1]) in ("T", "t")  # one that has just ended has no state

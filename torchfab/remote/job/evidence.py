"""Collect a node's evidence of how the job ended there: logs, error files, kernel messages, disks, GPUs.

Its size is bounded: a log of 10 GB is searched on the node, and only the matches and its end are sent.
"""

from __future__ import annotations

import os
import time

from torchfab.remote import job_files, procfs
from torchfab.remote.host import kernel_log, machine_facts
from torchfab.remote.job import disks, log_files, log_search, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Bytes.
_MAX_LOG_BYTES, _MIN_LOG_BYTES = 64 * 1024, 8 * 1024
# Of one log, of several together, and of each at least.
_MARKED_BYTES, _ALL_MARKED_BYTES, _MIN_MARKED_BYTES = log_search.MARKED_BYTES, 48 * 1024 * 1024, 1024 * 1024
_AFTER_END_S = 60.0  # the kernel may report late; later messages concern other processes
_MAX_REPORT_BYTES = 256 * 1024
_MAX_REPORTS = 64
_PROBES_S = 2.0  # for the answers of all probes


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Return the job's status on this node and the evidence for its cause.

    Parameters
    ----------
    request : dict
        `node_dir`, `job_id`, `node_rank`, and what `collect` takes: `max_bytes`, `search_s`.

    Returns
    -------
    dict
        As `torchfab.remote.job.status.status` returns it, and `evidence`: the keys of `collect`, `kernel` (kernel
        messages since the start of the job), `disks`, `halted` (names of stopped processes), `gpus` (their number),
        `boot_id`, `collectives` (as `torchfab.remote.job.recorder.collectives` returns them).
    """
    folder = job_files.folder_of(request)
    job_status = status.status(folder, request["job_id"], request["node_rank"])
    found = collect(folder, request["max_bytes"], request["search_s"])
    return {**job_status, "evidence": {**found, **_machine_evidence(folder, job_status, found["logs"])}}


def collect(folder: str, max_bytes: int, search_s: float) -> dict[str, Any]:
    """Return the evidence in a job's folder of one node.

    Parameters
    ----------
    folder : str
        The job's folder on that node.
    max_bytes : int
        How many bytes to return of all its logs together; at least 8 KiB of each.
    search_s : float
        How long to search its logs, in seconds.

    Returns
    -------
    dict
        `ends`: the exit record of each process, as its supervisor wrote it; `logs`: label, path, size, written (seconds
        since the epoch), and the parts found by `log_search.search`; `reports`: the contents of error files of the
        ranks or of torchrun.
    """
    names = job_files.processes(folder)
    return {
        "ends": {name: _exit_record(os.path.join(folder, name)) for name in names},
        "logs": _logs(folder, names, max_bytes, time.monotonic() + search_s),
        "reports": [report for name in names for report in _reports(os.path.join(folder, name))][:_MAX_REPORTS],
    }


def _logs(folder: str, names: list[str], max_bytes: int, deadline: float) -> list[dict[str, Any]]:
    """Return the parts found in the logs. The smallest logs are searched first, and none uses up the others' time."""
    found = [
        (log_files.size(log.full_path), name, log, label)
        for name in names
        for log, label in _logs_of_last_attempt(os.path.join(folder, name))
    ]
    ordered = sorted((each for each in enumerate(found) if each[1][0]), key=lambda each: each[1][0])
    share = max(_MIN_LOG_BYTES, min(_MAX_LOG_BYTES, max_bytes // max(1, len(ordered))))
    marked = _MARKED_BYTES if len(ordered) < 2 else max(_MIN_MARKED_BYTES, _ALL_MARKED_BYTES // len(ordered))
    times = {name: log_files.WriteTimes(os.path.join(folder, name)) for name in names}
    entries = {}
    for left, (at, (_, name, log, label)) in zip(range(len(ordered), 0, -1), ordered):
        now = time.monotonic()
        budget = log_search.Budget(share, now + max(0.0, deadline - now) / left, marked)
        entries[at] = _log_entry(log, label, times[name], budget)
    return [entries[at] for at in sorted(entries)]


def _machine_evidence(folder: str, job_status: dict[str, Any], logs: list[dict[str, Any]]) -> dict[str, Any]:
    starts = [process["started"] for process in job_status["processes"] if process["started"]]
    ends = [process["ended"] for process in job_status["processes"]]
    until = max(ends) + _AFTER_END_S if ends and all(ends) else float("inf")
    return {
        "kernel": kernel_log.read_since(min(starts, default=time.time()), until),
        "disks": disks.of_job(
            folder, _workdirs(folder), "\n".join(part["text"] for log in logs for part in log["parts"])
        ),
        "halted": [name for process in job_status["processes"] for name in _halted(folder, process)],
        "gpus": machine_facts.count_gpus(os.environ),
        "boot_id": procfs.boot_id(),
        "collectives": _collectives(folder, job_status),
    }


def _collectives(folder: str, job_status: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the collectives of the ranks: of a running job the current ones, else the saved ones."""
    from torchfab.remote.job import recorder  # imported here: not needed for a job that succeeded

    runs = any(rank["ended"] is None for process in job_status["processes"] for rank in process["ranks"])
    return (recorder.collectives(folder, _PROBES_S) if runs else []) or recorder.kept(folder)


def _exit_record(folder: str) -> dict[str, Any]:
    record = job_files.read_json(os.path.join(folder, job_files.EXIT)) or {}
    keys = ("asked", "killed", "left", "error", "oom_kills", "time", "peers")
    return {key: record[key] for key in keys if key in record}


def _logs_of_last_attempt(folder: str) -> list[tuple[log_files.LogFile, int | str]]:
    """Return the log files of a process with their labels; of its ranks, those of the last attempt only."""
    ranks = job_files.read_json(os.path.join(folder, job_files.RANKS)) or []
    found = log_files.find(folder, job_files.read_json(os.path.join(folder, job_files.SPEC)) or {})
    last_attempt = max((log.attempt for log in found), default=0)
    return [(log, log.label(ranks)) for log in found if log.local_rank is None or log.attempt == last_attempt]


def _log_entry(
    log: log_files.LogFile, label: int | str, times: log_files.WriteTimes, budget: log_search.Budget
) -> dict[str, Any]:
    found = log_search.search(log, times, budget)
    try:
        written = os.stat(log.full_path).st_mtime
    except OSError:  # removed meanwhile
        written = 0.0
    return {"label": label, "path": log.full_path, "written": written, **found}


# ---- error files


def _reports(folder: str) -> list[dict[str, Any]]:
    """Return the error files of a process, in torchelastic's format, written by the ranks or by torchrun."""
    ranks = job_files.read_json(os.path.join(folder, job_files.RANKS)) or []
    spec = job_files.read_json(os.path.join(folder, job_files.SPEC)) or {}
    found = []
    for log in log_files.find(folder, spec):
        if log.local_rank is not None and log.path.endswith("stderr.log"):
            path = os.path.join(os.path.dirname(log.full_path), "error.json")
            found.append(_report(path, log.label(ranks), log.attempt))
    label = log_files.AGENT if spec.get("rank") is None else spec["rank"]
    found.append(_report(os.path.join(folder, "errors", "error.json"), label, 0))
    return [report for report in found if report]


def _report(path: str, label: int | str, attempt: int) -> dict[str, Any]:
    if log_files.size(path) > _MAX_REPORT_BYTES:
        return {}
    content = (job_files.read_json(path) or {}) if os.path.exists(path) else {}
    message = content.get("message", "") if isinstance(content, dict) else ""
    extra = message.get("extraInfo") if isinstance(message, dict) else {}
    text = message.get("message", "") if isinstance(message, dict) else message
    if not text:
        return {}
    stack = extra.get("py_callstack") if isinstance(extra, dict) else ""
    return {"label": label, "attempt": attempt, "message": str(text)[:4096], "traceback": str(stack or "")[-16384:]}


# ---- the machine


def _workdirs(folder: str) -> list[str]:
    specs = (job_files.read_json(os.path.join(folder, name, job_files.SPEC)) for name in job_files.processes(folder))
    return list(dict.fromkeys(str(spec["cwd"]) for spec in specs if spec))


def _halted(folder: str, process: dict[str, Any]) -> list[str]:
    """Return names of the process and its ranks that run but are stopped, by a signal (SIGSTOP) or a debugger."""
    ranks = [(f"rank {rank['rank']}", rank["pid"], rank["start_time"]) for rank in process["ranks"]]
    started = job_files.read_json(os.path.join(folder, process["name"], job_files.STARTED)) or {}
    if started and started["pid"] not in [pid for _, pid, _ in ranks]:
        ranks.append((process["name"], started["pid"], started["start_time"]))
    return [name for name, pid, start in ranks if procfs.is_alive(pid, start) and _is_halted(pid)]


def _is_halted(pid: int) -> bool:
    return "".join(procfs.stat_fields(pid)[:1]) in ("T", "t")  # a process that has just ended has no state

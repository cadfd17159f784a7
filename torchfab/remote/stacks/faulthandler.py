"""Stack dumps by Python's faulthandler: send its signal, wait for the dump in the log, and parse it.

The signal is sent only to processes that catch it, because it would kill others.
"""

from __future__ import annotations

import os
import signal
import time

from torchfab.remote import job_files
from torchfab.remote.job import log_files
from torchfab.remote.thread_dump import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ALLOWED = "may"
_WAIT_S, _POLL_S, _SETTLED_S = 2.0, 0.02, 0.1


def check_signal(state: str, caught: int, name: str) -> str:
    """Check whether a process may be sent the signal.

    Parameters
    ----------
    state : str
        Its state; a stopped process would handle the signal too late.
    caught : int
        The mask of signals that it catches: SigCgt of /proc/PID/status.
    name : str
        The signal's name; empty: none is sent.

    Returns
    -------
    str
        ALLOWED, or the reason why not.
    """
    if not name:
        return "torchfab.stacks_signal is empty"
    if not caught >> (signal.Signals[name] - 1) & 1:
        return f"it does not catch {name}"
    return ALLOWED if state in ("R", "S") else f"in state {state} it handles no signal"


def signal_all(entries: list[dict[str, Any]], name: str) -> None:
    """Send the signal to all processes at once, and add the stacks that they write to their logs within 2 s.

    Parameters
    ----------
    entries : list of dict
        As `dump.targets` returns them; `threads` and `by`, or `signal` (the reason why there are none), are set.
    name : str
        The signal's name.
    """
    waiting = []
    for entry in entries:
        logs = {path: log_files.size(path) for path in _logs_of(entry)}
        if not logs:
            entry["signal"] = "its stderr is not a file of its own"
        else:
            waiting.append((entry, logs))
    for entry, _ in waiting:
        _send(entry["pid"], signal.Signals[name])
    deadline = time.monotonic() + _WAIT_S
    for entry, logs in waiting:
        threads = _await(logs, deadline)
        entry["signal"] = "" if threads else f"it wrote no stacks within {_WAIT_S:g} s of {name}"
        if threads:
            entry.update(threads=threads, by=name)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except OSError:  # it has ended
        pass


def _logs_of(entry: dict[str, Any]) -> list[str]:
    """Return the files that a process's stderr may go to: its open descriptor, and the logs of its rank."""
    paths = []
    try:
        paths.append(os.readlink(f"/proc/{entry['pid']}/fd/2"))
    except OSError:  # no permission
        pass
    spec = job_files.read_json(os.path.join(entry["folder"], job_files.SPEC)) or {}
    ranks = job_files.read_json(os.path.join(entry["folder"], job_files.RANKS)) or []
    logs = log_files.find(entry["folder"], spec)
    paths += [log.full_path for log in logs if log.label(ranks) in (entry["rank"], entry["process"])]
    return [path for path in dict.fromkeys(paths) if os.path.isfile(path)]


def _await(logs: dict[str, int], deadline: float) -> list[dict[str, Any]]:
    """Return the stacks that are appended after the given offsets; a dump is complete when no more text arrives."""
    last_text, changed = "", 0.0
    while True:
        text = "".join(_read_from(path, offset) for path, offset in logs.items())
        now = time.monotonic()
        if text != last_text:
            last_text, changed = text, now
        threads = parse(text)
        if (threads and now - changed > _SETTLED_S) or now > deadline:
            return threads
        time.sleep(_POLL_S)


def _read_from(path: str, offset: int) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(1024 * 1024).decode(errors="replace")
    except OSError:
        return ""

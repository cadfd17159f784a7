"""The stacks that Python's faulthandler writes when a signal comes: asked for, waited for in the log, and read.

Only a process that catches the signal gets it: any other would die of it.
"""

from __future__ import annotations

import os
import re
import signal
import time

from torchfab.remote import files
from torchfab.remote.job import log_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAY = "may"
_WAIT_S, _POLL_S, _SETTLED_S = 2.0, 0.02, 0.1
_HEAD = re.compile(r"(?:Thread|Current thread) 0x([0-9a-fA-F]+)(?: \[(.*)\])? \(most recent call first\):")
_FRAME = re.compile(r'  File "(.*)", line (\d{1,9}) in (.+)')


def may_ask(state: str, caught: int, name: str) -> str:
    """Return MAY, or in words why a process is not sent the signal.

    Parameters
    ----------
    state : str
        Its state; one that is stopped would answer later, when nobody waits.
    caught : int
        The mask of signals that it catches: SigCgt of /proc/PID/status.
    name : str
        The signal's name; empty: none is sent.
    """
    if not name:
        return "torchfab.stacks_signal is empty"
    if not caught >> (signal.Signals[name] - 1) & 1:
        return f"it does not catch {name}"
    return MAY if state in ("R", "S") else f"in state {state} it hears no signal"


def ask_all(entries: list[dict[str, Any]], name: str) -> None:
    """Send the signal to all processes at once, and fill in what they write to their logs within 2 s."""
    waiting = []
    for entry in entries:
        logs = {path: log_files.size(path) for path in _logs_of(entry)}
        if not logs:
            entry["signal"] = "its stderr is no file of its own"
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
    except OSError:  # gone meanwhile
        pass


def _logs_of(entry: dict[str, Any]) -> list[str]:
    """Return the files that a process's stderr may go to: what it has open there, or the logs with its rank."""
    paths = []
    try:
        paths.append(os.readlink(f"/proc/{entry['pid']}/fd/2"))
    except OSError:  # it may not be looked into
        pass
    spec = files.read_json(os.path.join(entry["folder"], files.SPEC)) or {}
    ranks = files.read_json(os.path.join(entry["folder"], files.RANKS)) or []
    logs = log_files.find(entry["folder"], spec)
    paths += [log.full_path for log in logs if log.label(ranks) in (entry["rank"], entry["process"])]
    return [path for path in dict.fromkeys(paths) if os.path.isfile(path)]


def _await(logs: dict[str, int], deadline: float) -> list[dict[str, Any]]:
    """Return the stacks that appear behind the given offsets; nothing tells their end but that no more comes."""
    seen, since = "", 0.0
    while True:
        text = "".join(_read_from(path, offset) for path, offset in logs.items())
        now = time.monotonic()
        if text != seen:
            seen, since = text, now
        threads = parse(text)
        if (threads and now - since > _SETTLED_S) or now > deadline:
            return threads
        time.sleep(_POLL_S)


def _read_from(path: str, offset: int) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(1024 * 1024).decode(errors="replace")
    except OSError:
        return ""


def parse(text: str) -> list[dict[str, Any]]:
    """Return the threads of the first dump in a text, the main thread first; a frame is `[function, file, line]`.

    faulthandler lists threads from the youngest to the oldest, which is the main one. Lines of others in between, as
    of a training that goes on, are passed over; a second dump is left alone.
    """
    threads: list[dict[str, Any]] = []
    known: set[str] = set()
    for line in text.splitlines():
        head = _HEAD.fullmatch(line)
        if head and head[1] in known:
            break
        if head:
            known.add(head[1])
            threads.append({"name": head[2] or f"0x{head[1].lstrip('0')}", "active": False, "gil": False, "frames": []})
        frame = _FRAME.fullmatch(line)
        if frame and threads:
            threads[-1]["frames"].append([frame[3], frame[1], int(frame[2])])
    return threads[::-1]

"""Kernel messages of a node that explain failures: the OOM killer, GPU errors (Xid), crashes, failing disks, links."""

from __future__ import annotations

import os
import re
import subprocess
import time

from torchfab.remote.procfs import int_or_none

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST_LINES = 60
# Faults of a disk, a local file system, or the server of a network file system.
STORAGE = (
    r"I/O error|EXT4-fs error|XFS .*(?:error|shut(?:ting )?down|corruption)|BTRFS.*(?:error|forced readonly)"
    r"|Remounting filesystem read-only|Aborting journal|critical (?:medium|target) error|Disk failure on \S+, disabling"
    r"|nvme\S* .*(?:controller is down|resetting controller|timeout, (?:aborting|reset)|Removing after probe failure)"
    r"|Lustre(?:Error)?: .*(?:evicted|Connection to .* was lost)|mmfs.*(?:unmount|error)|beegfs.*(?:error|lost)"
    r"|libceph: .*(?:lost|blocklist|hung)|nfs: server .* not responding"
)
# Faults of the machine's memory.
FAULTY_MEMORY = r"Uncorrected hardware memory error|hardware memory corruption|Memory failure: 0x\w+: .*(?:kill|SIGBUS)"
_WANTED = re.compile(
    r"Out of memory|oom-kill:|invoked oom-killer|Killed process \d+|oom_reaper|NVRM: Xid|SXid \(|segfault at|traps: |"
    r"NVRM: .*(?:fallen off the bus|RmInitAdapter failed|RESET_REQUIRED|needs? to be reset)|"
    rf"general protection|Link is Down|Machine check|Hardware Error|{STORAGE}|{FAULTY_MEMORY}",
    re.IGNORECASE,
)
# Distinguishes lines when there are too many: a flood of one Xid must not hide another Xid, or a kill.
_DISTINCT = re.compile(r"Xid \([^)]*\): \d+|Killed process \d+")


def read_since(since: float, until: float = float("inf")) -> dict[str, Any]:
    """Read the relevant kernel messages since a time.

    Reads /dev/kmsg, else the journal (readable for the groups adm and systemd-journal).

    Parameters
    ----------
    since : float
        Seconds since the epoch.
    until : float
        Leave out later messages, in seconds since the epoch. Default: no limit.

    Returns
    -------
    dict
        `lines`, each `[seconds since the epoch, text]`; `unread`, why the log could not be read, or empty.
    """
    try:
        records = _records()
    except OSError as error:
        return _read_journal(since, until, f"/dev/kmsg: {error.strerror}")
    booted = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
    lines = [[booted + stamp, text] for stamp, text in map(parse, records)]
    return {"lines": _kept(lines, since, until), "unread": ""}


def _kept(lines: list[list[Any]], since: float, until: float = float("inf")) -> list[list[Any]]:
    found = [line for line in lines if since - 1 <= line[0] <= until and _WANTED.search(line[1])]
    return found if len(found) <= _MOST_LINES else _select(found)


def _select(lines: list[list[Any]]) -> list[list[Any]]:
    """Return the first line of each kind, then the latest lines up to _MOST_LINES."""
    firsts: dict[str, int] = {}
    for index, (_, text) in enumerate(lines):
        match = _DISTINCT.search(text) or _WANTED.search(text)
        firsts.setdefault(match[0].lower() if match else "", index)
    first = list(firsts.values())[:_MOST_LINES]
    latest = [index for index in range(len(lines) - 1, -1, -1) if index not in firsts.values()]
    return [lines[index] for index in sorted(first + latest[: _MOST_LINES - len(first)])]


def _records() -> list[str]:
    handle = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    found = []
    try:
        while True:
            try:
                found.append(os.read(handle, 8192).decode(errors="replace"))
            except BlockingIOError:
                return found
            except BrokenPipeError:  # the ring buffer was overwritten: the next read continues at its oldest record
                continue
    finally:
        os.close(handle)


def parse(record: str) -> tuple[float, str]:
    """Parse one record of /dev/kmsg: `priority,number,microseconds,flags;text`.

    Parameters
    ----------
    record : str
        The record.

    Returns
    -------
    float
        Seconds since boot.
    str
        Its text.
    """
    head, _, text = record.partition(";")
    fields = head.split(",")
    microseconds = int_or_none(fields[2]) if len(fields) > 2 else None
    return (microseconds or 0) / 1e6, text.partition("\n")[0][:400]


def _read_journal(since: float, until: float, reason: str) -> dict[str, Any]:
    argv = ["journalctl", "--dmesg", "--quiet", "--no-pager", "-o", "short-unix", f"--since=@{int(since)}"]
    try:
        done = subprocess.run(argv, check=False, capture_output=True, text=True, errors="replace", timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return {"lines": [], "unread": reason}
    lines = [_journal_line(line) for line in done.stdout.splitlines()]
    return {"lines": _kept([line for line in lines if line], since, until), "unread": "" if done.stdout else reason}


def _journal_line(line: str) -> list[Any]:
    match = re.match(r"(\d+\.\d+) \S+ kernel: (.*)", line)
    return [float(match[1]), match[2][:400]] if match else []

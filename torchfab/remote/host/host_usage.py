"""What the CPUs, the memory, the disks and the network of a node do, from /proc: rates between two looks.

The parsers take the text of a file (proc(5)), and `rates` two looks; all but `look` are pure.
"""

from __future__ import annotations

import os
import re
import time

from torchfab.remote.procfs import whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SECTOR_BYTES = 512  # in /proc/diskstats, whatever the disk's own sectors are


def look() -> dict[str, Any]:
    """Return the counters of just now."""
    disks = os.listdir("/sys/block") if os.path.isdir("/sys/block") else []
    return {
        "at": time.monotonic(),
        "cpu": cpu_ticks(_read("/proc/stat")),
        "memory": memory(_read("/proc/meminfo")),
        "load": load(_read("/proc/loadavg")),
        "disk": disk_bytes(_read("/proc/diskstats"), disks),
        "network": network_bytes(_read("/proc/net/dev")),
        "cpus": os.cpu_count() or 1,
    }


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:  # a container may not have it
        return ""


def cpu_ticks(text: str) -> list[int]:
    """Return the busy and all ticks of all CPUs since boot, from /proc/stat; waiting for a disk is not busy."""
    for line in text.splitlines():
        if line.startswith("cpu "):
            ticks = [whole(word) or 0 for word in line.split()[1:9]]  # guest time, after these, is counted in user time
            return [sum(ticks) - sum(ticks[3:5]), sum(ticks)]
    return [0, 0]


def memory(text: str) -> list[int]:
    """Return the bytes in use, and all, from /proc/meminfo; what can be had back at once is not in use."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and (kib := whole(words[0])) is not None:
            found[name] = kib * 1024
    total = found.get("MemTotal", 0)
    return [total - found.get("MemAvailable", found.get("MemFree", total)), total]


def load(text: str) -> float:
    """Return the mean number of tasks that ran or wanted to within the last minute, from /proc/loadavg."""
    match = re.match(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", text)
    return float(match[0]) if match else 0.0


def disk_bytes(text: str, disks: list[str]) -> list[int]:
    """Return the bytes read and written since boot, from /proc/diskstats, of whole disks only.

    Loops, RAM disks and what is made of other disks (device mapper, md) would count the same bytes twice.
    """
    disks_only = {name for name in disks if not name.startswith(("loop", "ram", "zram", "dm-", "md", "sr"))}
    rows = [line.split() for line in text.splitlines()]
    rows = [row for row in rows if len(row) >= 10 and row[2] in disks_only]
    return [sum(whole(row[index]) or 0 for row in rows) * _SECTOR_BYTES for index in (5, 9)]


def network_bytes(text: str) -> list[int]:
    """Return the bytes received and sent since boot, from /proc/net/dev, without the loopback interface."""
    received = sent = 0
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        words = rest.split()
        if colon and len(words) >= 9 and name.strip() != "lo":
            received, sent = received + (whole(words[0]) or 0), sent + (whole(words[8]) or 0)
    return [received, sent]


def rates(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return what happened between two looks.

    Returns
    -------
    dict
        `cpu` (0 to 1, of all), `cpus`, `memory` and `memory_total` (bytes), `load`, and in bytes a second `disk_read`,
        `disk_written`, `received`, `sent`.
    """
    seconds: float = max(now["at"] - before["at"], 1e-3)
    busy, ticks = (now["cpu"][index] - before["cpu"][index] for index in (0, 1))

    def rate(name: str, index: int) -> float:
        count: int = now[name][index] - before[name][index]
        return max(0.0, count / seconds)

    return {
        "cpu": min(1.0, max(0.0, busy / ticks)) if ticks > 0 else 0.0,
        "cpus": now["cpus"],
        "memory": now["memory"][0],
        "memory_total": now["memory"][1],
        "load": now["load"],
        "disk_read": rate("disk", 0),
        "disk_written": rate("disk", 1),
        "received": rate("network", 0),
        "sent": rate("network", 1),
    }

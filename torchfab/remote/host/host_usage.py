"""The load of a node's CPUs, memory, disks and network, from /proc, as rates between two samples.

The parsers take the text of a file (proc(5)), and `rates` takes two samples; all but `read_counters` are pure.
"""

from __future__ import annotations

import os
import re
import time

from torchfab.remote.procfs import int_or_none

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SECTOR_BYTES = 512  # in /proc/diskstats, whatever the disk's own sectors are


def read_counters() -> dict[str, Any]:
    """Read the current counters.

    Returns
    -------
    dict
        A sample for `rates`: `at` (monotonic seconds), `cpu`, `memory`, `load`, `disk`, `network`, `cpus`.
    """
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
    except OSError:  # containers may hide it
        return ""


def cpu_ticks(text: str) -> list[int]:
    """Parse /proc/stat.

    Parameters
    ----------
    text : str
        Its text.

    Returns
    -------
    list of int
        Busy ticks and all ticks of all CPUs since boot; time spent waiting for a disk is not busy.
    """
    for line in text.splitlines():
        if line.startswith("cpu "):
            # The fields after these hold guest time, which user time already includes.
            ticks = [int_or_none(field) or 0 for field in line.split()[1:9]]
            return [sum(ticks) - sum(ticks[3:5]), sum(ticks)]
    return [0, 0]


def memory(text: str) -> list[int]:
    """Parse /proc/meminfo.

    Parameters
    ----------
    text : str
        Its text.

    Returns
    -------
    list of int
        Used bytes and total bytes; memory that can be reclaimed at once is not in use.
    """
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        fields = rest.split()
        if fields and (kib := int_or_none(fields[0])) is not None:
            found[name] = kib * 1024
    total = found.get("MemTotal", 0)
    return [total - found.get("MemAvailable", found.get("MemFree", total)), total]


def load(text: str) -> float:
    """Parse /proc/loadavg.

    Parameters
    ----------
    text : str
        Its text.

    Returns
    -------
    float
        Load average of the last minute.
    """
    match = re.match(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", text)
    return float(match[0]) if match else 0.0


def disk_bytes(text: str, disks: list[str]) -> list[int]:
    """Parse /proc/diskstats, counting whole disks only.

    Loop devices, RAM disks and devices made of other disks (device mapper, md) would count the same bytes twice.

    Parameters
    ----------
    text : str
        Its text.
    disks : list of str
        The names in /sys/block.

    Returns
    -------
    list of int
        Bytes read and bytes written since boot.
    """
    disks_only = {name for name in disks if not name.startswith(("loop", "ram", "zram", "dm-", "md", "sr"))}
    rows = [line.split() for line in text.splitlines()]
    rows = [row for row in rows if len(row) >= 10 and row[2] in disks_only]
    return [sum(int_or_none(row[index]) or 0 for row in rows) * _SECTOR_BYTES for index in (5, 9)]


def network_bytes(text: str) -> list[int]:
    """Parse /proc/net/dev, without the loopback interface.

    Parameters
    ----------
    text : str
        Its text.

    Returns
    -------
    list of int
        Bytes received and bytes sent since boot.
    """
    received = sent = 0
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        fields = rest.split()
        if colon and len(fields) >= 9 and name.strip() != "lo":
            received, sent = received + (int_or_none(fields[0]) or 0), sent + (int_or_none(fields[8]) or 0)
    return [received, sent]


def rates(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Compute the rates between two samples.

    Parameters
    ----------
    before, now : dict
        As `read_counters` returns them.

    Returns
    -------
    dict
        `cpu` (busy share of all CPUs, 0 to 1), `cpus`, `memory` and `memory_total` (bytes), `load`; `disk_read`,
        `disk_written`, `received` and `sent` in bytes per second.
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

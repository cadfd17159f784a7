#!/usr/bin/env python3
"""Hold the hosts of a benchmark: start their sshds, adopt and reap their orphans, and count all CPU.

    holder.py FOLDER        FOLDER/*.conf: one sshd each

Every orphan of a host (a tmux server) becomes a child of this process, so that no CPU time is lost: the CPU of the
hosts is that of their living and all reaped processes. Requests come over stdin, one per line: `cpu` answers
`{"cpu_s", "processes", "pss_mb"}`; `clear` ends all processes of the hosts except their sshds. At the end of stdin it
ends all.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def stat_of(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the third (state) on; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def descendants(root: int) -> dict[int, list[str]]:
    """Return the descendants of a process, each with its fields of stat."""
    table = {int(name): stat_of(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    children: dict[int, list[int]] = {}
    for pid, fields in table.items():
        if fields:
            children.setdefault(int(fields[1]), []).append(pid)
    found, waiting = {}, [root]
    while waiting:
        for pid in children.get(waiting.pop(), []):
            found[pid] = table[pid]
            waiting.append(pid)
    return found


def cpu_s() -> float:
    """Return the CPU seconds of all descendants of this process, living or reaped."""
    own = stat_of(os.getpid())
    ticks = sum(int(tick) for fields in descendants(os.getpid()).values() for tick in fields[11:15])
    return (ticks + int(own[13]) + int(own[14])) * _TICK_S


def pss_mb(pids: list[int]) -> float:
    """Return the memory of processes, with shared pages divided among them."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024


def reap() -> None:
    """Wait for orphans that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def clear(keep: set[int]) -> None:
    """End all processes of the hosts except those in `keep`."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        reap()
        left = [pid for pid, fields in descendants(os.getpid()).items() if pid not in keep and fields[0] != "Z"]
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.05)


def main(folder: str) -> None:
    """Start the hosts, report that they are up, and answer requests until stdin ends."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.makedirs("/run/sshd", mode=0o755, exist_ok=True) if os.geteuid() == 0 else None
    sshds = [
        subprocess.Popen(["/usr/sbin/sshd", "-D", "-E", f"{path}.log", "-f", str(path)], stdin=subprocess.DEVNULL)
        for path in sorted(Path(folder).glob("*.conf"))
    ]
    keep = {sshd.pid for sshd in sshds}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark, which ends us
    signal.signal(signal.SIGCHLD, lambda *_: reap())
    print(json.dumps({"pids": sorted(keep)}), flush=True)
    for line in sys.stdin:
        reap()
        if line.strip() == "clear":
            clear(keep)
        others = [pid for pid in descendants(os.getpid()) if pid not in keep]
        answer = {"cpu_s": cpu_s(), "processes": len(others), "dead": sum(each.poll() is not None for each in sshds)}
        print(json.dumps(answer | ({"pss_mb": pss_mb(others)} if line.strip() == "memory" else {})), flush=True)
    clear(set())


if __name__ == "__main__":
    main(sys.argv[1])

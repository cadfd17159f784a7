"""Run a command with a time limit, and measure wall time, CPU and memory of its process tree."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_S = 0.2


@dataclass(frozen=True)
class Cost:
    """Cost of a command.

    Parameters
    ----------
    begun : float
        Start, in seconds since the epoch.
    wall_s, cpu_s : float
        Time until it ended; CPU of all processes in its tree that were waited for.
    memory_mb : float
        The larger of the peak of its largest process and the peak sum over its tree (shared pages counted once).
        Sampled, because the kernel's figure at the end includes our own memory, which a child has until it execs.
    code : int
        Exit code; 124 if the limit ended it.
    output_tail : str
        End of its output.
    """

    begun: float
    wall_s: float
    cpu_s: float
    memory_mb: float
    code: int
    output_tail: str


def run(argv: Sequence[str], limit_s: float, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Cost:
    """Run a command to its end, at most `limit_s` seconds."""
    with tempfile.TemporaryFile() as output:
        begun = time.time()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "PYTHONDONTWRITEBYTECODE": "",
                **(env or {}),
            },  # as for users, whose modules are compiled
            cwd=cwd,
            start_new_session=True,
        )
        monitor = _Monitor(process.pid, limit_s)
        monitor.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        wall_s = time.time() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        monitor.ended.set()
        monitor.join()
        output.seek(max(0, output.seek(0, os.SEEK_END) - 2000))
        output_tail = output.read().decode(errors="replace")
    code = 124 if monitor.late else process.returncode
    return Cost(begun, wall_s, usage.ru_utime + usage.ru_stime, monitor.memory_mb, code, output_tail)


class _Monitor(threading.Thread):
    """Sample the memory of a process tree; kill the tree at the time limit."""

    def __init__(self, pid: int, limit_s: float) -> None:
        super().__init__(daemon=True)
        self.pid, self.limit_s = pid, limit_s
        self.ended = threading.Event()
        self.memory_mb, self.late = 0.0, False

    def run(self) -> None:
        deadline = time.monotonic() + self.limit_s
        while not self.ended.wait(_SAMPLE_S):
            tree = _tree(self.pid)
            self.memory_mb = max(self.memory_mb, sum(map(_pss_mb, tree)), *map(_peak_mb, tree))
            if time.monotonic() > deadline:
                self.late = True
                os.killpg(self.pid, signal.SIGKILL)
                return


def _tree(root: int) -> list[int]:
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        try:
            waiting += [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:  # it has ended
            continue
    return found


def _pss_mb(pid: int) -> float:
    return _kb(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") / 1024


def _peak_mb(pid: int) -> float:
    return _kb(Path(f"/proc/{pid}/status"), "VmHWM:") / 1024


def _kb(path: Path, name: str) -> int:
    try:
        return sum(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name))
    except OSError:  # it has ended
        return 0

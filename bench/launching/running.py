"""Run a command and say what it cost: wall time, CPU and memory of its whole process tree, each within a limit."""

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
    """What a command cost.

    Parameters
    ----------
    begun : float
        When it began, in seconds since the epoch.
    wall_s, cpu_s : float
        Until it ended; of the processes in its tree that were waited for.
    memory_mb : float
        The larger of the peak of its largest process, and of the sum over its tree (shared pages counted once), sampled
        (what the kernel reports at the end counts our own memory too, which a child has until it runs its program).
    code : int
        Its exit code; 124 when the limit ended it.
    said : str
        The end of what it printed.
    """

    begun: float
    wall_s: float
    cpu_s: float
    memory_mb: float
    code: int
    said: str


def run(argv: Sequence[str], limit_s: float, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Cost:
    """Run a command to its end, at most `limit_s` seconds."""
    with tempfile.TemporaryFile() as output:
        begun = time.time()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", **(env or {})},  # users have compiled modules
            cwd=cwd,
            start_new_session=True,
        )
        watch = _Watch(process.pid, limit_s)
        watch.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        wall_s = time.time() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        watch.ended.set()
        watch.join()
        output.seek(max(0, output.seek(0, os.SEEK_END) - 2000))
        said = output.read().decode(errors="replace")
    code = 124 if watch.late else process.returncode
    return Cost(begun, wall_s, usage.ru_utime + usage.ru_stime, watch.memory_mb, code, said)


class _Watch(threading.Thread):
    """Sample the memory of a process tree, and end it when its time is up."""

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

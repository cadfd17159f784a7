"""Holding a launcher: its main thread does nothing, its other threads do, and nothing stays held."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.remote.place import wait_for
from torchfab.remote import procfs
from torchfab.remote.job import launcher_hold
from torchfab.remote.job.launcher_hold import Hold

# The main thread and another one count in files; SIGTERM is handled and ends it with 5.
COUNTING = """
import os, signal, sys, threading, time

def count(path):
    number = 0
    while True:
        number += 1
        with open(path + ".new", "w") as file:
            file.write(str(number))
        os.replace(path + ".new", path)
        time.sleep(0.01)

signal.signal(signal.SIGTERM, lambda *_: os._exit(5))
threading.Thread(target=count, args=(sys.argv[1] + "/thread",), daemon=True).start()
count(sys.argv[1] + "/main")
"""
HOLDING = """
import sys, time
from torchfab.remote.job.launcher_hold import Hold
Hold().hold([int(sys.argv[1])])
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process of two threads that count in files."""
    with subprocess.Popen([sys.executable, "-c", COUNTING, str(tmp_path)]) as process:
        wait_for(lambda: (tmp_path / "main").exists() and (tmp_path / "thread").exists())
        yield process
        process.kill()


def number(path: Path) -> int:
    return int(path.read_text())


def advances(path: Path) -> bool:
    before = number(path)
    try:
        wait_for(lambda: number(path) > before + 2, 0.5)
    except (AssertionError, TimeoutError):
        return False
    return True


def test_only_the_main_thread_is_held(counting: subprocess.Popen[bytes], tmp_path: Path) -> None:
    held = Hold()
    held.hold([counting.pid])
    assert held.traced == {counting.pid}
    assert not advances(tmp_path / "main")
    assert advances(tmp_path / "thread")
    held.release()
    assert advances(tmp_path / "main")


def test_a_signal_during_the_hold_is_handled_after_it(counting: subprocess.Popen[bytes]) -> None:
    held = Hold()
    held.hold([counting.pid])
    counting.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        counting.wait(0.3)
    held.release([counting.pid])
    assert counting.wait(10) == 5


def test_a_killed_holder_leaves_nothing_held(counting: subprocess.Popen[bytes], tmp_path: Path) -> None:
    argv = [sys.executable, "-c", HOLDING, str(counting.pid)]
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": os.fspath(root)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        assert not advances(tmp_path / "main")
        holder.kill()
    assert advances(tmp_path / "main")


def test_the_end_of_a_held_grandchild_reaches_its_parent(tmp_path: Path) -> None:
    script = f"{sys.executable} -c 'import time; time.sleep(600)' & echo $! > {tmp_path}/pid; wait $!; exit 6"
    with subprocess.Popen(["sh", "-c", script]) as parent:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip() != "")
        pid = number(tmp_path / "pid")
        held = Hold()
        held.hold([pid])
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not procfs.is_running(pid))
        held.release()
        assert parent.wait(10) == 6


def test_without_ptrace_the_whole_process_is_stopped(
    counting: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher_hold, "_ptrace", lambda *_: -1)
    held = Hold()
    held.hold([counting.pid])
    assert held.stopped == {counting.pid}
    wait_for(lambda: procfs.stat_fields(counting.pid)[0] == "T")
    held.release()
    assert advances(tmp_path / "main")


def test_a_process_that_has_ended_is_skipped() -> None:
    held = Hold()
    held.hold([2**22 - 1])
    assert not held.traced
    assert not held.stopped

"""The tmux window of a process: what it shows, and the program that shows it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.remote.place import wait_for
from torchfab.remote import job_files
from torchfab.remote.job import window_output
from torchfab.remote.job.log_files import LogFile
from torchfab.remote.job.window_output import Window


def viewed(folder: Path) -> tuple[Window, subprocess.Popen[bytes]]:
    """Return the window of a process and the program that runs in it."""
    with (folder / "shown").open("wb") as shown:
        viewer = subprocess.Popen(window_output.viewer_argv(str(folder)), stdout=shown)
    return Window(str(folder), {}, is_own=False), viewer


def has_opened(window: Window) -> bool:
    window.open()
    return window.out >= 0


def test_an_unreadable_log_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.log").mkdir()  # it has a size, and cannot be opened
    (tmp_path / "a.log" / "x").touch()
    (tmp_path / "b.log").write_text("step 1\n")
    reader, writer = os.pipe()
    window = Window(str(tmp_path), {})
    window.out = writer
    window.show([LogFile(str(tmp_path), name) for name in ("a.log", "b.log")], [])
    os.close(writer)
    with os.fdopen(reader) as shown:
        assert shown.read() == "step 1\n"


def test_a_viewer_shows_all_from_the_beginning_and_ends_with_the_window(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("step 1\n")
    logs = [LogFile(str(tmp_path), "a.log")]
    window, viewer = viewed(tmp_path)
    wait_for(lambda: has_opened(window))
    assert not (tmp_path / job_files.WINDOW).exists()
    window.show(logs, [])
    (tmp_path / "a.log").write_text("step 1\nstep 2\n")
    window.show(logs, [])
    window.close()
    assert viewer.wait(30) == 0
    assert (tmp_path / "shown").read_text() == "step 1\nstep 2\n"


def test_a_viewer_that_comes_late_ends_too(tmp_path: Path) -> None:
    window, viewer = viewed(tmp_path)
    window.close()  # before or after `cat` has opened the FIFO
    viewer.wait(30)
    assert window.out == -1
    assert not (tmp_path / job_files.WINDOW).exists()


def test_a_stuck_viewer_never_blocks(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"x" * 1_000_000)
    window, viewer = viewed(tmp_path)
    wait_for(lambda: has_opened(window))
    viewer.send_signal(signal.SIGSTOP)
    for size in range(1, 6):
        (tmp_path / "a.log").write_bytes(b"x" * 1_000_000 * size)
        window.show([LogFile(str(tmp_path), "a.log")], [])
    viewer.kill()
    viewer.wait()
    window.close()


def test_without_fifos_there_is_no_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "mkfifo", refuse)
    assert window_output.viewer_argv(str(tmp_path)) == []
    window = Window(str(tmp_path), {}, is_own=False)
    window.show([], [])
    window.close()
    assert window.out == -1

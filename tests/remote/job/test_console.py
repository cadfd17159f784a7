"""The output in the supervisor's window."""

from __future__ import annotations

import os
from pathlib import Path

from torchfab.remote.job.console import Window
from torchfab.remote.job.log_files import LogFile


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

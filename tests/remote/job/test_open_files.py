"""The files that a process writes are found; those that it reads, and its logs, are not."""

from __future__ import annotations

import os
from pathlib import Path

from torchfab.remote.job import open_files


def test_files_open_for_writing_are_found(tmp_path: Path) -> None:
    (tmp_path / "read").write_text("")
    (tmp_path / "logs").mkdir()
    with (
        open(tmp_path / "read"),
        open(tmp_path / "written part", "w"),
        open(tmp_path / "both", "a+"),
        open(tmp_path / "logs" / "rank-0.log", "w"),
        open(tmp_path / "removed", "w"),
    ):
        (tmp_path / "removed").unlink()
        found = open_files.written_by([os.getpid()], str(tmp_path / "logs"))
        mine = sorted(os.path.basename(path) for path in found if path.startswith(str(tmp_path)))
        assert mine == ["both", "written part"]
        assert str(tmp_path / "logs" / "rank-0.log") in open_files.written_by([os.getpid()])
    assert [path for path in open_files.written_by([os.getpid()]) if path.startswith(str(tmp_path))] == []


def test_a_process_that_has_ended_writes_nothing() -> None:
    assert open_files.written_by([2**22 + 1]) == []

"""The file by which a node recognizes the directory that is copied."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

import pytest

from torchfab.sync.marker import PREFIX, marker_file


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_marker_is_removed_at_the_end(tmp_path: Path) -> None:
    with marker_file(str(tmp_path), "a") as name:
        assert names(tmp_path) == {name} == {f"{PREFIX}a"}
    assert names(tmp_path) == set()


def test_markers_of_killed_processes_are_removed_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}killed").write_text(socket.gethostname())
    (tmp_path / f"{PREFIX}elsewhere").write_text("another-host")
    with marker_file(str(tmp_path), "lives") as living, marker_file(str(tmp_path), "mine") as name:
        assert names(tmp_path) == {f"{PREFIX}elsewhere", living, name}
    assert names(tmp_path) == {f"{PREFIX}elsewhere"}


def test_a_marker_is_made_where_nothing_can_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / f"{PREFIX}killed").write_text(socket.gethostname())
    with marker_file(str(tmp_path), "mine") as name:
        assert names(tmp_path) == {f"{PREFIX}killed", name}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Permission denied"), marker_file(str(tmp_path), "a"):
        pass

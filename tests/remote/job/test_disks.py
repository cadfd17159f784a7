"""How full the file systems of a job are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchfab.remote.job import disks


def test_the_disk_of_the_folder_comes_first_and_has_what_statvfs_says(tmp_path: Path) -> None:
    first = disks.of_job(str(tmp_path), [], "")[0]
    assert first["path"] == str(tmp_path)
    assert first["size"] == os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    assert first["read_only"] is False


def test_a_folder_that_does_not_exist_is_left_out(tmp_path: Path) -> None:
    found = [each["path"] for each in disks.of_job(str(tmp_path), [str(tmp_path / "none")], "")]
    assert str(tmp_path / "none") not in found
    assert "/tmp" in found


@pytest.mark.parametrize(
    "text", ["OSError: [Errno 28] No space left on device: '/data/run/x.pt'", "Errno 5 Input/output error: '/data/x'"]
)
def test_the_disk_of_a_failed_write_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    monkeypatch.setattr(disks, "_mounts", lambda: {"/": "ext4", "/data": "ext4", "/dat": "ext4"})
    assert disks.of_job(str(tmp_path), [], text)[-1] == {"path": "/data", "free": None, "size": None}


def test_a_file_server_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disks, "_mounts", lambda: {"/": "ext4", "/data": "nfs4"})
    text = "OSError: [Errno 28] No space left on device: '/data/run/x.pt'"
    assert "/data" not in [each["path"] for each in disks.of_job(str(tmp_path), [], text)]

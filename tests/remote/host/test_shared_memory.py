"""Shared memory that ended processes have left: what doctor counts, and of whom."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from torchfab.remote import procfs
from torchfab.remote.host import shared_memory


@pytest.fixture
def shm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of shared memory of our own, whose files count as settled at once."""
    if shared_memory._is_shared_unseen():
        pytest.skip("this container shares the memory of its host")
    monkeypatch.setattr(shared_memory, "_SETTLED_S", -60.0)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        monkeypatch.setattr(shared_memory, "FOLDER", folder)
        yield Path(folder)


def test_unused_memory_is_counted_by_user(shm: Path) -> None:
    assert shared_memory.unused() == []
    (shm / "psm_1").write_bytes(b"x" * 10)
    (shm / "nccl-2").write_bytes(b"x" * 20)
    (shm / "a_dataset").write_bytes(b"x" * 40)
    with open(shm / "psm_used", "wb") as file:
        file.write(b"x" * 80)
        user = procfs.user_name(os.getuid())
        assert shared_memory.unused() == [{"user": user, "files": 2, "bytes": 30}]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_only_root_counts_files_of_others(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shm / "psm_other").write_bytes(b"x" * 10)
    os.chown(shm / "psm_other", 54321, 54321)
    assert shared_memory.unused() == [{"user": "54321", "files": 1, "bytes": 10}]
    monkeypatch.setattr(os, "getuid", lambda: 54322)
    assert shared_memory.unused() == []


def test_what_was_made_just_now_may_be_about_to_be_used(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "_SETTLED_S", 60.0)
    (shm / "psm_1").write_bytes(b"x")
    assert shared_memory.unused() == []

"""Files of a job on a node."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hostile import HOSTILE, texts
from torchfab.remote import job_files


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_job_folders_differ_by_job_and_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert job_files.job_folder("/scratch/tf/", "a-01", 3) == "/scratch/tf/jobs/a-01/node-3"
    assert job_files.job_folder("~/.torchfab", "a-01", 0) == "/home/ann/.torchfab/jobs/a-01/node-0"


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_folders_and_files_are_private_to_their_owner(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        job_files.make_private(str(tmp_path / "a" / "b"))
        job_files.make_private(str(tmp_path / "a" / "b"))
        job_files.write_json(str(tmp_path / "a" / "b" / "x.json"), {})
    finally:
        os.umask(before)
    assert [mode(tmp_path / "a"), mode(tmp_path / "a" / "b"), mode(tmp_path / "a" / "b" / "x.json")] == [
        0o700,
        0o700,
        0o600,
    ]


def test_an_existing_folder_keeps_its_permissions(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    job_files.make_private(str(tmp_path))
    assert mode(tmp_path) == 0o755


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full for every file that is flushed to it, as a new one is."""

    def fsync(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").endswith(".new"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)


def test_reserved_space_allows_that_many_writes_on_a_full_disk(tmp_path: Path, full: None) -> None:
    path = tmp_path / "x.json"
    job_files.reserve_space(str(path), times=2)
    assert all(mode(each) == 0o600 for each in tmp_path.iterdir())
    for value in ({"a": 1}, {"b": 2}):
        job_files.write_json(str(path), value)
        assert job_files.read_json(str(path)) == value
    with pytest.raises(OSError, match="No space left"):
        job_files.write_json(str(path), {})
    assert job_files.read_json(str(path)) == {"b": 2}
    assert os.listdir(tmp_path) == ["x.json"]


def test_unused_reserved_space_is_released(tmp_path: Path) -> None:
    job_files.reserve_space(str(tmp_path / "x.json"), times=2)
    job_files.write_json(str(tmp_path / "x.json"), {"a": 1})
    job_files.release_space(str(tmp_path / "x.json"))
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_write_without_enough_reserved_space_fails_on_a_full_disk(tmp_path: Path, full: None) -> None:
    job_files.reserve_space(str(tmp_path / "long.json"))
    for name, value in (("other.json", {}), ("long.json", "x" * 5000)):
        with pytest.raises(OSError, match="No space left"):
            job_files.write_json(str(tmp_path / name), value)
    assert os.listdir(tmp_path) == ["long.json.room0"]


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in HOSTILE.items()])
def test_any_text_is_written_and_read_back(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    job_files.write_text(str(path), text)
    assert path.read_bytes() == text.encode("utf-8", "surrogateescape")
    job_files.write_json(str(path), {"a": [text], text: None})
    assert job_files.read_json(str(path)) == {"a": [text], text: None}
    assert os.listdir(tmp_path) == ["x"]


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | texts(), lambda x: st.lists(x) | st.dictionaries(texts(), x)
    )
)
def test_any_json_is_written_and_read_back(value: object) -> None:
    with TemporaryDirectory() as folder:
        job_files.write_json(f"{folder}/x", value)
        assert job_files.read_json(f"{folder}/x") == value


def test_a_reader_never_sees_a_partly_written_file(tmp_path: Path) -> None:
    path = str(tmp_path / "x.json")
    job_files.write_json(path, ["0" * 100_000])
    ended = threading.Event()

    def write() -> None:
        for digit in "123456789" * 3:
            job_files.write_json(path, [digit * 100_000])
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = []
    while not ended.is_set():
        reads.append(job_files.read_json(path))
    writer.join()
    assert reads
    assert all(value is not None and len(set(value[0])) == 1 and len(value[0]) == 100_000 for value in reads)


def test_writing_over_a_readable_file_makes_it_private(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(0o644)
    job_files.write_text(str(path), "new")
    assert (path.read_text(), mode(path)) == ("new", 0o600)


@pytest.mark.parametrize("text", ["", "{", "[1", "\x00"])
def test_invalid_json_reads_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(text)
    assert job_files.read_json(str(tmp_path / "x")) is None


def test_a_missing_file_reads_as_none(tmp_path: Path) -> None:
    assert job_files.read_json(str(tmp_path / "x")) is None
    assert job_files.read_json(str(tmp_path)) is None
    assert job_files.processes(str(tmp_path / "x")) == []


def test_processes_are_listed_in_the_order_of_their_ranks(tmp_path: Path) -> None:
    for name in ("rank-10", "rank-2", "rank-1", "agent"):
        (tmp_path / name).mkdir()
        (tmp_path / name / job_files.SPEC).write_text("{}")
    (tmp_path / "no spec").mkdir()
    (tmp_path / job_files.STOP).write_text("{}")
    assert job_files.processes(str(tmp_path)) == ["agent", "rank-1", "rank-2", "rank-10"]

"""Reading of files of hosts: what is no file, too large, or not text."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from torchfab.core.errors import InventoryError
from torchfab.core.hostfiles import read_gpus, read_hosts, reading


def error(path: Path) -> str:
    with pytest.raises(InventoryError) as caught:
        read_hosts(path)
    return str(caught.value)


@pytest.mark.parametrize("read", [read_hosts, read_gpus])
def test_the_error_for_a_missing_file_has_a_fix(read: object, tmp_path: Path) -> None:
    path = tmp_path / "it's $HOME"
    with pytest.raises(InventoryError) as caught:
        read(path)  # type: ignore[operator]
    fix = "write one host per line into it, or give hosts with -H host1,host2; fab init writes one to fill in"
    assert str(caught.value) == f"{path}: there is no such file\n  fix: {fix}"


def test_a_folder_instead_of_a_file_is_an_error(tmp_path: Path) -> None:
    fix = f"give the file in it: {tmp_path}/hosts"
    assert error(tmp_path) == f"{tmp_path}: is a folder, not a hosts file\n  fix: {fix}"


def test_the_error_for_a_binary_file_has_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(b"node1\n\xff\xfe")
    assert error(path) == f"{path}:2: not UTF-8 text (byte 6)\n  fix: save it as UTF-8, which has no such byte"


def test_utf_16_is_read_as_windows_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    for encoding in ("utf-16", "utf-8-sig"):
        path.write_bytes("node1\r\nnode2\r\n".encode(encoding))
        assert reading.read_text(path) == "node1\r\nnode2\r\n"


@pytest.mark.parametrize("content", [b"\x7fELF\x02\x01\0\0", "node1\n".encode("utf-16-le"), b"node1\0\n"])
def test_what_has_nul_characters_is_no_text(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(content)
    assert error(path).startswith(f"{path}: not text: it contains NUL characters, as UTF-16 and programs do")


def test_an_endless_device_is_refused() -> None:
    assert error(Path("/dev/zero")).startswith("/dev/zero: larger than 1 MB: not a hosts file")


def test_a_large_file_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.touch()
    os.truncate(path, 2 << 30)  # of holes: it takes no space
    assert "larger than 1 MB: not a hosts file" in error(path)


def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "loop"
    path.symlink_to(path)
    assert error(path).startswith(f"{path}: cannot be read: ")


def test_a_named_pipe_is_read_when_its_writer_comes(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_text("a\nb\n"))
    writer.start()
    assert [node.host for node in read_hosts(path).inventory.nodes] == ["a", "b"]
    writer.join()


def test_a_named_pipe_without_a_writer_is_an_error_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIPE_TIMEOUT_S", 0.1)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert "no data arrived through this pipe" in error(path)


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_stdin_is_read(name: str) -> None:
    program = (
        f"from pathlib import Path\nfrom torchfab.core.hostfiles import read_hosts\nprint(read_hosts(Path({name!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input="a\nb slots=x", capture_output=True, text=True, check=False
    )
    assert ("stdin:2" if name == "-" else "/dev/stdin:2") + ": slots=x: not a number of processes" in done.stderr

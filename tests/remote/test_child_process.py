"""The child process of a supervisor, as a real process."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

import pytest

from tests.remote.place import python, wait_for
from torchfab.remote import child_process

LOOK = """
import os, sys
print(os.getsid(0) == os.getpid(), os.getcwd(), sorted(set(os.environ) - {"LC_CTYPE"}), os.read(0, 1), sys.argv[1:])
print([name for name in sorted(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd/" + name)])
"""


def started(argv: tuple[str, ...], folder: Path) -> child_process.Child:
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    try:
        return child_process.start(argv, {"PATH": os.environ["PATH"], "A": "1"}, str(folder), output, lambda: None)
    finally:
        os.close(output)


def code_of(process: child_process.Child) -> int | None:
    wait_for(lambda: process.poll() is not None)
    return process.poll()


def test_a_child_gets_its_own_session_and_no_other_descriptors(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(handle, True)
    assert code_of(started(python(LOOK, "a b", "ü"), tmp_path)) == 0
    os.close(handle)
    first, handles = (tmp_path / "output").read_text().splitlines()
    assert first == f"True {tmp_path} ['A', 'PATH'] b'' ['a b', 'ü']"
    assert handles == "['0', '1', '2']"


def test_a_broken_pipe_ends_a_program_as_usual(tmp_path: Path) -> None:
    assert code_of(started(("sh", "-c", "kill -PIPE $$; exit 3"), tmp_path)) == -13


@pytest.mark.parametrize(("code", "returncode"), [("raise SystemExit(7)", 7), ("os.kill(os.getpid(), 9)", -9)])
def test_the_end_of_a_child_is_a_code_or_a_signal(tmp_path: Path, code: str, returncode: int) -> None:
    assert code_of(started(python(f"import os; {code}"), tmp_path)) == returncode


def test_a_running_child_has_no_exit_code(tmp_path: Path) -> None:
    process = started(python("import time; time.sleep(0.2)"), tmp_path)
    assert process.poll() is None
    begun = time.monotonic()
    assert code_of(process) == 0
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("argv", "number"),
    [(("/no/such",), errno.ENOENT), (("no-such-program",), errno.ENOENT), (("/etc/passwd",), errno.EACCES)],
)
def test_the_reason_of_a_failed_start_is_raised(tmp_path: Path, argv: tuple[str, ...], number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)) as error:
        started(argv, tmp_path)
    assert error.value.errno == number


def test_an_argument_with_a_nul_byte_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        started((sys.executable, "a\0b"), tmp_path)


def test_a_missing_working_directory_is_an_error(tmp_path: Path) -> None:
    output = os.open(tmp_path / "output", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(FileNotFoundError):
        child_process.start(["true"], {"PATH": os.environ["PATH"]}, str(tmp_path / "no"), output, lambda: None)
    os.close(output)

"""Running a program without the module `subprocess`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.remote.place import python
from torchfab.remote import light_subprocess


def test_exit_code_and_both_outputs_are_returned() -> None:
    assert light_subprocess.run(["sh", "-c", "echo out; echo err >&2; exit 3"], 20) == (3, "out\n", "err\n")
    assert light_subprocess.run(["sh", "-c", "kill -9 $$"], 20) == (-9, "", "")


MUCH = "import sys; sys.stdout.buffer.write(b'x' * 300_000 + b'\\xff'); sys.stderr.buffer.write(b'y' * 300_000)"


def test_much_output_on_both_streams_does_not_block() -> None:
    code, output, errors = light_subprocess.run(python(MUCH), 20)
    assert (code, len(output), len(errors), output[-1]) == (0, 300_001, 300_000, "\ufffd")


def test_folder_environment_and_stdin_are_those_given(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "A": "ü b"}
    assert light_subprocess.run(["sh", "-c", 'pwd; echo "$A"; cat'], 20, str(tmp_path), env)[1] == f"{tmp_path}\nü b\n"


def test_a_program_that_takes_too_long_is_killed() -> None:
    begun = time.monotonic()
    with pytest.raises(light_subprocess.ProgramTimeoutError, match=r"sleep did not end within 0\.1 s"):
        light_subprocess.run(["sleep", "60"], 0.1)
    with pytest.raises(light_subprocess.ProgramTimeoutError):  # it has closed its outputs
        light_subprocess.run(["sh", "-c", "exec >&- 2>&-; exec sleep 60"], 0.2)
    assert time.monotonic() - begun < 20


def test_a_missing_program_is_an_error_and_leaves_no_descriptor_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            light_subprocess.run(["no-such-program"], 1)
    light_subprocess.run(["true"], 10)
    assert len(os.listdir("/proc/self/fd")) == before

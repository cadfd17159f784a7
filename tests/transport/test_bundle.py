"""The source text of the program that runs on nodes."""

from __future__ import annotations

import subprocess
import sys

from torchfab.transport import bundle


def test_the_program_is_plain_python_with_its_own_modules() -> None:
    code = (
        bundle.source().rpartition("sys.exit(")[0]
        + "\nimport torchfab.remote.job.log_reader as m; print(m.__name__, m.__spec__.loader)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import sys; exec(sys.stdin.read())"],
        input=code,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("torchfab.remote.job.log_reader <class ")


def test_the_command_has_the_length_of_the_program_in_bytes() -> None:
    *before, length = bundle.argv("a python")
    assert before == ["a python", "-I", "-S", "-c", bundle.BOOTSTRAP]
    assert int(length) == len(bundle.packed())


def test_the_command_is_far_below_the_limit_of_a_command_line() -> None:
    assert sum(map(len, bundle.argv("python3"))) < 1000

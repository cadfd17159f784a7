"""The one source text that runs on a node."""

from __future__ import annotations

import subprocess
import sys

from torchfab.transport import bundle


def test_the_program_is_plain_python_that_brings_its_own_modules() -> None:
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


def test_its_length_is_said_in_bytes_whatever_is_in_it() -> None:
    *before, length = bundle.argv("a python")
    assert before == ["a python", "-I", "-S", "-c", bundle.BOOTSTRAP]
    assert int(length) == len(bundle.packed())


def test_an_argv_of_it_is_far_below_what_a_command_line_holds() -> None:
    assert sum(map(len, bundle.argv("python3"))) < 1000

"""The supervisor's modules, compiled once for all supervisors of a job."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.remote.place import Place, python
from torchfab.remote import job_files

# The program in a job's folder, without what would run it; the tests append their own code.
LOAD = "import sys; exec(open(sys.argv[1]).read().partition('# ---- run')[0], {'__file__': sys.argv[1]})\n"
WRITE = LOAD + "from torchfab.remote.job import bytecode_cache; bytecode_cache.write(sys.argv[2])"
MODULES = (
    "import torchfab.remote.job.supervisor; print(sorted(n for n in sys.modules if n.startswith('torchfab.remote.')))"
)
FROM_WHERE = "print(sorted(sys.meta_path[0].get_code.__globals__['CODE']))"


def run(place: Place, code: str) -> str:
    words = python(code, str(place.folder / job_files.BUNDLE), str(place.folder))
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_all_modules_of_a_supervisor_are_compiled(place: Place) -> None:
    run(place, WRITE)
    assert run(place, LOAD + MODULES) == run(place, LOAD + FROM_WHERE)


def test_a_supervisor_works_with_and_without_the_cache(place: Place) -> None:
    assert place.run(["true"], name="a")[0] == 0
    run(place, WRITE)
    assert place.run(["sh", "-c", "exit 3"], name="b")[0] == 3


@pytest.mark.parametrize("head", [b"another interpreter\n", repr(sys.version).encode() + b"\n", b""])
def test_the_cache_of_another_interpreter_or_a_broken_one_is_not_used(place: Place, head: bytes) -> None:
    (place.folder / (job_files.BUNDLE + "c")).write_bytes(head + b"no code at all")
    assert run(place, LOAD + FROM_WHERE) == "[]\n"
    assert place.run(["true"])[0] == 0


def test_a_supervisor_loads_no_module_that_starts_slowly(place: Place) -> None:
    run(place, WRITE)
    heavy = "{'subprocess', 'threading', 'traceback', 'socket', 'typing', 'shutil', 'logging'}"
    assert (
        run(place, f"{LOAD}import torchfab.remote.job.supervisor; print(sorted({heavy} & set(sys.modules)))") == "[]\n"
    )

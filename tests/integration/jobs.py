"""Arguments and answers of `fab` that the integration tests share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.integration.fab import Done, Fab


def ok(done: Done) -> Done:
    """Assert that a `fab` succeeded; return it."""
    assert done.rc == 0, done
    return done


def status_of(fab: Fab, job: str) -> dict[str, Any]:
    """Return `fab status --json`, whatever its exit code."""
    answer: dict[str, Any] = json.loads(fab("status", job, "--json").stdout)
    return answer


def gpufile(fab: Fab, *indices: int) -> str:
    """Write a gpus file with the cluster's hosts by index, one per line; return its path."""
    return str(fab.write("my_gpus", "".join(f"{host_line(fab, index)}\n" for index in indices)))


def two(fab: Fab, *words: str) -> tuple[str, ...]:
    """Return the arguments of a launch-per-gpu with one rank on each of the two hosts."""
    return ("launch-per-gpu", "--gpufile", gpufile(fab, 0, 1), *words)


def host_line(fab: Fab, index: int) -> str:
    """Return a node's line of the cluster's hosts file: a host, and on loopback its address."""
    lines = fab.cluster.hostfile.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")][index]


def bare_python(fab: Fab) -> Path:
    """Create an interpreter with all packages of this one, and no other program beside it."""
    venv = fab.workdir / "bare"
    (venv / "bin").mkdir(parents=True)
    ours = Path(sys.prefix)
    (venv / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    (venv / "pyvenv.cfg").write_text((ours / "pyvenv.cfg").read_text())
    (venv / "lib").symlink_to(ours / "lib")
    fab.own(venv)
    return venv / "bin" / "python"

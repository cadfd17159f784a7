"""What a command imports: most of its time is importing, so it imports nothing that it does not use.

One process for each command; it writes the names of the modules that it has imported by its end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUN = """\
import atexit, json, sys
atexit.register(lambda path: open(path, "w").write(json.dumps(sorted(sys.modules))), sys.argv.pop(1))
from torchfab.cli import program
program.main()
"""
# Of what Fabric itself imports, nothing can be left out.
LIBRARIES = (
    *("ClusterShell", "http.client", "kubernetes", "mcp", "msgspec", "multiprocessing", "opentelemetry", "rich"),
    *("torch", "uuid"),
)
LAUNCHERS = tuple(
    f"torchfab.launchers.{name}"
    for name in ("colossalai", "deepspeed", "kubernetes", "mpi", "network", "per_gpu", "per_node", "slurm")
)
PACKAGES = tuple(
    f"torchfab.{name}"
    for name in (
        "agents",
        "api",
        "doctor.collect",
        "documents.hosts",
        "documents.jobs",
        "importers",
        "metrics",
        "network",
        "profiling",
        "stacks",
        "supervise.job_supervisor",
        "sync",
        "why.diagnosis",
    )
)
JOBS = ("torchfab.core.specs", "torchfab.records", "torchfab.transport")
SSH = ("torchfab.transport.ssh.config", "torchfab.transport.ssh.connect")
ANSWERS = ("msgspec", "uuid")  # uuid is msgspec's


def imported(tmp_path: Path, *args: str) -> set[str]:
    """Run a command in an empty project, and return the names of the modules that it has imported."""
    (tmp_path / "hosts").write_text("localhost slots=1\n")
    (tmp_path / "torchfab.yaml").write_text("agent_python: python3\n")
    (tmp_path / "train.py").write_text("")
    listed = tmp_path / "modules.json"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", RUN, str(listed), *args]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert listed.is_file(), done.stderr
    return set(json.loads(listed.read_text()))


def unwanted(modules: set[str], names: tuple[str, ...]) -> list[str]:
    """Return the modules that are, or are within, one of some names."""
    return sorted(each for each in modules if any(each == name or each.startswith(f"{name}.") for name in names))


def without(names: tuple[str, ...], *used: str) -> tuple[str, ...]:
    return tuple(name for name in names if name not in used)


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (
            ["--list"],
            (*LIBRARIES, *LAUNCHERS, *PACKAGES, *JOBS),
        ),
        (["--help", "launch-mpi"], (*LIBRARIES, *without(LAUNCHERS, "torchfab.launchers.mpi"), *PACKAGES)),
        (["status"], (*without(LIBRARIES, *ANSWERS), *LAUNCHERS, *PACKAGES, *SSH)),
        (["jobs"], (*without(LIBRARIES, *ANSWERS), *LAUNCHERS, *PACKAGES, *SSH)),
        (["logs"], (*without(LIBRARIES, *ANSWERS), *LAUNCHERS, *PACKAGES, *SSH)),
        (
            ["launch-per-node", "--dry-run", "--nproc-per-node", "1", "--", "train.py"],
            (*without(LIBRARIES, *ANSWERS), *without(LAUNCHERS, "torchfab.launchers.per_node"), *PACKAGES, *SSH),
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_imports_nothing_that_it_does_not_use(
    tmp_path: Path, args: list[str], names: tuple[str, ...]
) -> None:
    assert not unwanted(imported(tmp_path, *args), names)


def loaded_by(*names: str) -> set[str]:
    """Import modules in a process of their own, and return all that it then has."""
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def test_connections_load_no_messages_and_no_hosts_files() -> None:
    loaded = loaded_by("torchfab.transport.ssh.connect")
    assert not unwanted(loaded, ("msgspec", "torchfab.transport.messages", "torchfab.core.inventory"))


def test_the_status_and_logs_of_a_job_load_no_diagnosis_and_no_launch() -> None:
    loaded = loaded_by("torchfab.commands.status", "torchfab.commands.logs", "torchfab.runtimes.tmux")
    assert not unwanted(loaded, (*without(LIBRARIES, *ANSWERS), *LAUNCHERS, *PACKAGES, *SSH))

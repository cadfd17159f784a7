"""`env push` on rehearsal hosts, from wheels of this folder: no index is reached."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest

from tests.integration.fab import Fab
from tests.integration.faults_injected import fake_program, refused
from tests.integration.jobs import ok

METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def wheel(folder: Path, name: str, version: str) -> str:
    """Write a wheel with a module that has its version; return its name."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": METADATA.format(name=name, version=version),
        f"{info}/WHEEL": WHEEL,
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_there, text in files.items():
            archive.writestr(name_there, text)
    return path.name


@pytest.fixture
def project(fab: Fab, monkeypatch: pytest.MonkeyPatch) -> Fab:
    """The real `fab`, whose project is the working directory."""
    fab.write("fabfile.py", "from torchfab.fabfile import *\n")
    fab.write("torchfab.yaml", "")
    own = ("-r", str(fab.workdir), "-S", str(fab.cluster.ssh_config))
    monkeypatch.setattr(fab, "args", lambda *args, config=None: (*own, *args))
    return fab


def test_env_push_makes_the_same_environment_everywhere_and_launches_compare_it(project: Fab) -> None:
    fab = project
    names = [wheel(fab.workdir, "torch", "1.0"), wheel(fab.workdir, "torch", "2.0")]
    fab.write("requirements.txt", f"--no-index\n./{names[0]}\n")
    push = ("env", "push", "--hostfile", str(fab.cluster.hostfile), "--python", sys.executable)
    made = json.loads(ok(fab(*push, "--json", timeout_s=120)).stdout)
    # The rehearsal hosts share the folder: one makes it, the other waits and finds it.
    assert sorted(each["made"] for each in made["hosts"]) == [False, True]
    python = f"{fab.workdir}/.venv/bin/python"
    again = ok(fab(*push))
    version = ".".join(map(str, sys.version_info[:3]))
    assert again.stdout == (
        f"node[1-2]: {fab.workdir}/.venv is up to date, Python {version}\nlaunch with it: --python {python}\n"
    )
    fab.write("show.py", "import torch; print('torch is', torch.VERSION)")
    first = ok(fab(*fab.launch("--python", python, "--follow", "--", "show.py", gpus=True)))
    assert "torch is 1.0" in first.stdout
    assert "env push" not in first.stderr
    fab.write("requirements.txt", f"--no-index\n./{names[1]}\n")
    changed = ok(fab(*fab.launch("--python", python, "--dry-run", "--", "show.py", gpus=True)))
    assert "node[1-2]: its environment was created from another requirements.txt than the project's" in changed.stderr


def test_env_push_refuses_an_environment_that_it_did_not_make(fab: Fab) -> None:
    fab.write("requirements.txt", "--no-index\n")
    (fab.workdir / ".venv").mkdir()
    fab.own(fab.write(".venv/mine", ""))
    done = fab("env", "push", "--hostfile", str(fab.cluster.hostfile), "--requirements", "requirements.txt")
    refused(done, "node[1-2]: ", ".venv is not empty, and was not created by env push", "fix: remove it there")


def test_env_push_reports_what_the_installer_says(fab: Fab) -> None:
    fab.write("requirements.txt", "none==1\n")
    script = 'test "$1" = venv || { echo "no solution for none==1" >&2; exit 1; }; mkdir -p "$4/bin"'
    with fake_program(fab.cluster.node(0), "uv", script), fake_program(fab.cluster.node(1), "uv", script):
        done = fab("env", "push", "--hostfile", str(fab.cluster.hostfile), "--requirements", "requirements.txt")
    refused(done, "error: 2 of 2 hosts failed", "uv pip sync", "ended with status 1", "no solution for none==1")


def test_env_without_push_is_refused(fab: Fab) -> None:
    refused(fab("env"), "env expects the word push, got nothing", "fix: fab env push")

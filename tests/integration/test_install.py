"""The wheel in an empty environment: a user without rights there launches from a folder of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.fab import ROOT, Fab
from tests.support import absent

SHOW = "import os, sys, torch\nprint('rank', os.environ['RANK'], sys.prefix, os.getcwd(), *sys.argv[1:], flush=True)\n"


@pytest.fixture(scope="module")
def torchfab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The command `torchfab`, of a wheel that pip has installed into an empty environment."""
    base = tmp_path_factory.mktemp("install")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(base)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = base.glob("*.whl")
    environment = Path("/tmp") / f"torchfab-install-{os.getpid()}"  # any user may enter it
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    try:
        pip = [sys.executable, "-m", "pip", "-q", "--python", str(environment / "bin" / "python"), "install"]
        done = subprocess.run([*pip, str(wheel)], capture_output=True, text=True, check=False)
        if done.returncode:
            absent(f"pip cannot install the wheel: {done.stderr.strip()[-300:]}")
        yield environment / "bin" / "torchfab"
    finally:
        shutil.rmtree(environment, ignore_errors=True)


class Project:
    """An empty folder of the cluster's user, and an environment with torch that is activated there."""

    def __init__(self, torchfab: Path, fab: Fab) -> None:
        self.torchfab, self.cluster, self.folder = torchfab, fab.cluster, fab.base / "my project"
        self.venv = fab.base / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.venv)], check=True)
        packages = next((self.venv / "lib").glob("python*")) / "site-packages"
        (packages / "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.folder.mkdir()
        fab.own(fab.base)

    def run(self, *args: str, below: str = "") -> subprocess.CompletedProcess[str]:
        """Run `torchfab ARGS...` in the folder, or below it."""
        return self.run_program(str(self.torchfab), "-S", str(self.cluster.ssh_config), *args, below=below)

    def run_program(self, *words: str, below: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program in the folder, or below it, with the environment of the training activated."""
        path = f"{self.venv / 'bin'}:{os.environ['PATH']}"
        session = ("env", "-u", "PYTHONPATH", f"VIRTUAL_ENV={self.venv}", f"PATH={path}")
        argv, folder = self.cluster.on_launch_machine(*session, *words), self.folder / below
        return subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=60, check=False)

    def __call__(self, *args: str, below: str = "") -> str:
        """Run `torchfab ARGS...`, which must succeed; return its output."""
        done = self.run(*args, below=below)
        assert done.returncode == 0, done
        return done.stdout + done.stderr

    def write(self, name: str, text: str) -> None:
        """Write a file, as the cluster's user may read it."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)


def test_an_installed_torchfab_launches_follows_and_stops(torchfab: Path, loopback_fab: Fab) -> None:
    project = Project(torchfab, loopback_fab)
    assert project("init").count("wrote") == 4
    shutil.copyfile(loopback_fab.cluster.hostfile, project.folder / "hosts")
    project.write("src/show.py", SHOW)
    project.write("src/sleep.sh", "#!/bin/sh\necho shell $RANK of $WORLD_SIZE\nexec sleep 60\n")
    loopback_fab.own(project.folder)
    one = ("--nproc-per-node", "1")
    shown = project("launch-per-node", "--name", "a", *one, "--follow", "--", "show.py", "x  y", below="src")
    for rank in (0, 1):
        assert f"rank {rank} {project.venv} {project.folder / 'src'} x  y" in shown
    assert "job a succeeded" in shown
    assert "torchfab logs a" in shown
    project("launch-per-node", "--name", "b", *one, "--", "./sleep.sh", below="src")
    try:
        assert "running" in project("status")
    finally:
        stopped = project("stop", below="src")
    assert "job b: stopped, no process of it is left on 2 nodes" in stopped
    records = project.folder / ".torchfab" / "records"
    assert sorted(path.name for path in records.iterdir()) == ["a", "b"]


PROGRAM = """
import sys
from torchfab import TorchfabError, job, launch

def where(word):
    import os
    return word, os.environ["RANK"], sys.prefix, os.getcwd()

try:
    print(*launch(where, args=["x  y"], name="api", launcher="per-gpu", ssh_config=sys.argv[1]), sep="\\n")
    print(job("api").status().state)
    job("none")
except TorchfabError as error:
    print(error)
"""


def test_a_program_in_the_installed_environment_uses_the_python_api(torchfab: Path, loopback_fab: Fab) -> None:
    project = Project(torchfab, loopback_fab)
    project("init")
    shutil.copyfile(loopback_fab.cluster.gpufile, project.folder / "gpus")
    project.write("src/program.py", PROGRAM)
    loopback_fab.own(project.folder)
    ssh_config = str(loopback_fab.cluster.ssh_config)
    done = project.run_program(str(torchfab.with_name("python")), "program.py", ssh_config, below="src")
    *results, state, problem, fix = done.stdout.splitlines()
    ranks = [("x  y", str(rank), str(project.venv), str(project.folder / "src")) for rank in range(4)]
    assert (results, done.stderr) == (list(map(str, ranks)), "")
    assert (state, problem) == ("succeeded", "no job 'none' was launched from here")
    assert fix == "  fix: jobs known here: api"
    assert (project.folder / ".torchfab" / "records" / "api").is_dir()
    assert "job api: succeeded" in project("status", "api")


def test_what_is_not_installed_is_named_with_the_line_to_type(torchfab: Path, loopback_fab: Fab) -> None:
    done = Project(torchfab, loopback_fab).run("launch-kubernetes", "--image", "x", "--", "x.py")
    assert done.returncode == 1
    assert "needs the package kubernetes (torchfab[kubernetes]) on this machine" in done.stderr
    assert f"fix: uv pip install --python {torchfab.parent}/python" in done.stderr


def test_help_of_the_installed_command_needs_no_clone(torchfab: Path, tmp_path: Path) -> None:
    done = subprocess.run([torchfab, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "  launch-per-node " in done.stdout
    modules = [str(torchfab.with_name("python")), "-X", "importtime", "-m", "torchfab", "--help"]
    heavy = subprocess.run(modules, cwd=tmp_path, capture_output=True, text=True, check=True).stderr
    assert not [name for name in ("rich", "ClusterShell", "msgspec", "yaml.constructor") if f"| {name}\n" in heavy]

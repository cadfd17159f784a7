"""The bootstrap `run`, in a copy of it with requirement files that install nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import require

pytestmark = pytest.mark.slow

RUN = Path(__file__).parents[1] / "run"
NEEDED = ("tmux", "ssh", "rsync")
NEEDED_BY_TESTS = (
    *("sshd", "ip", "slurmd", "sbatch", "munged", "mpirun.openmpi", "mpiexec.hydra", "pdsh", "iptables", "faketime"),
    *("shellcheck", "zsh", "fish", "tcsh"),
)
TOOLS = ("bash", "sh", "env", "mkdir", "rm", "mv", "tail", "dirname", "readlink", "uname")


def call(project: Path, *words: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CI": "", "PIP_QUIET": "2", **variables}
    argv = [str(project / "run"), *words]
    return subprocess.run(
        argv,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def copy_into(folder: Path) -> Path:
    folder.mkdir(parents=True)
    shutil.copy(RUN, folder)
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-nodeps.txt"):
        (folder / name).write_text("# nothing\n")
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a complete .venv; the folder's name has characters that are special in a shell."""
    for program in NEEDED:
        require(program)
    folder = copy_into(tmp_path_factory.mktemp("run") / "it's a $HOME; project")
    done = call(folder, "true")
    assert done.returncode == 0, done.stderr
    assert "making .venv" in done.stderr
    return folder


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder for PATH with the programs that `run` itself uses, without Python and the programs to install."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    return folder


@pytest.fixture
def quick_venv(project: Path, tmp_path: Path) -> str:
    """A PATH whose python3.13 copies a .venv in place of making one: that takes 5 s of a CPU, most of it for pip."""
    folder = tmp_path / "quick"
    folder.mkdir()
    copy = f'case "$*" in "-m venv "*) exec cp -r "{project}/.venv" "$3";; esac'
    stub(folder, "python3.13", copy.replace("$HOME", r"\$HOME"), f'exec {sys.executable} "$@"')
    return f"{folder}:{os.environ['PATH']}"


def stub(folder: Path, name: str, *lines: str) -> None:
    """Put a shell script into a folder of PATH."""
    path = folder / name
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)


def stubs(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        stub(folder, name)


def test_without_a_command_it_prints_its_usage() -> None:
    done = call(RUN.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ./run CMD…")


def test_help_goes_to_stdout() -> None:
    done = call(RUN.parent, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ./run CMD…")


def test_a_second_call_is_silent_and_runs_in_the_venv(project: Path) -> None:
    done = call(project, "python", "-c", "import sys; print(sys.prefix)")
    assert (done.stdout, done.stderr, done.returncode) == (f"{project / '.venv'}\n", "", 0)


def test_arguments_arrive_unchanged_and_the_exit_code_comes_back(project: Path) -> None:
    hostile = ["a b", "", "$HOME", "'", '"', "é\n;", "*", "-x"]
    done = call(project, "python", "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", *hostile)
    assert (done.stdout, done.returncode) == (f"{hostile}\n", 7)


def test_run_keeps_the_current_folder_and_works_through_a_symlink(project: Path, tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(project / "run")
    done = call(tmp_path, "python", "-c", "import os, sys; print(os.getcwd()); print(sys.prefix)", cwd=tmp_path)
    assert done.stdout.splitlines() == [str(tmp_path), str(project / ".venv")], done.stderr


def test_an_unknown_command_is_named(project: Path) -> None:
    done = call(project, "no-such-command")
    assert (done.returncode, done.stderr) == (127, "run: no such command: no-such-command\n")


def test_it_reinstalls_only_when_the_requirements_change(project: Path) -> None:
    requirements = project / "requirements.txt"
    requirements.write_text("# nothing, changed\n")
    assert "installing requirements.txt into .venv" in call(project, "true").stderr
    assert call(project, "true").stderr == ""
    requirements.touch()
    assert call(project, "true").stderr == ""


def test_inv_also_installs_the_requirements_for_development(project: Path, bare: Path) -> None:
    stub(project / ".venv" / "bin", "inv", "echo invoked")
    stubs(bare, [*NEEDED, *NEEDED_BY_TESTS])
    (bare / "python3").symlink_to(sys.executable)
    first, second = (call(project, "inv", PATH=str(bare)) for _ in range(2))
    assert "installing requirements.txt requirements-dev.txt requirements-nodeps.txt into" in first.stderr
    assert second.stderr == ""
    assert (first.stdout, second.stdout) == ("invoked\n", "invoked\n")


def test_a_failed_install_leaves_no_stamp(project: Path) -> None:
    requirements = project / "requirements.txt"
    good = requirements.read_text()
    requirements.write_text("/no/such/package\n")
    done = call(project, "true")
    assert done.returncode == 1
    assert "pip could not install it" in done.stderr
    assert not (project / ".venv" / ".installed-requirements.txt").exists()
    requirements.write_text(good)
    assert call(project, "true").returncode == 0


def test_a_moved_project_gets_a_new_venv(project: Path, tmp_path: Path, quick_venv: str) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(project, moved, symlinks=True)
    assert "making .venv" in call(moved, "true", PATH=quick_venv).stderr
    assert call(moved, "python", "-c", "import sys; print(sys.prefix)").stdout == f"{moved / '.venv'}\n"


def test_two_at_once_install_once(tmp_path: Path, quick_venv: str) -> None:
    folder = copy_into(tmp_path / "both")
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: call(folder, "python", "-m", "pip", "--version", PATH=quick_venv), range(2)))
    assert [done.returncode for done in both] == [0, 0], both
    assert sorted("making .venv" in done.stderr for done in both) == [False, True]


def test_an_old_python_on_a_node_is_an_error_with_the_needed_version(tmp_path: Path, bare: Path) -> None:
    stubs(bare, NEEDED)
    stub(bare, "python3", "echo 3 9")
    stub(bare, "python3.12", "exit 127")  # as a version manager's shim that leads nowhere
    done = call(copy_into(tmp_path / "project"), "true", PATH=str(bare))
    assert done.returncode == 1
    assert "Python 3.10 or later is needed" in done.stderr
    assert "Found: python3 is 3.9;" in done.stderr


def test_a_missing_program_without_a_package_manager_is_an_error(tmp_path: Path, bare: Path) -> None:
    stubs(bare, ["ssh", "rsync"])
    done = call(copy_into(tmp_path / "project"), "true", PATH=str(bare))
    assert done.returncode == 1
    assert done.stderr == "run: missing: tmux; no known package manager found; install by hand: tmux\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="root installs without sudo")
@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("apt-get", "apt-get install -y --no-install-recommends tmux openssh-client"),
        ("dnf", "dnf install -y tmux openssh-clients"),
        ("yum", "yum install -y tmux openssh-clients"),
        ("pacman", "pacman -S --noconfirm --needed tmux openssh"),
        ("zypper", "zypper --non-interactive install tmux openssh-clients"),
    ],
)
def test_root_installs_what_is_missing(tmp_path: Path, bare: Path, manager: str, command: str) -> None:
    stubs(bare, ["rsync"])
    stub(bare, manager, f'printf "%s\\n" "$*" >> {tmp_path}/calls', f"for p in tmux ssh; do : > {bare}/$p; done")
    (bare / "chmod").symlink_to(require("chmod"))
    with (bare / manager).open("a") as script:
        script.write(f"chmod +x {bare}/tmux {bare}/ssh\n")
    done = call(copy_into(tmp_path / "project"), "true", PATH=str(bare))
    assert f"run: installing: {command}\n" in done.stderr
    assert (tmp_path / "calls").read_text() == f"{command.partition(' ')[2]}\n"
    assert "Python 3.10" in done.stderr  # it continued with the next step


@pytest.mark.skipif(os.geteuid() != 0, reason="root installs without sudo")
def test_the_output_of_a_failing_package_manager_is_shown(tmp_path: Path, bare: Path) -> None:
    stubs(bare, ["ssh", "rsync"])
    stub(bare, "apt-get", "echo E: no route to the mirror", "exit 100")
    done = call(copy_into(tmp_path / "project"), "true", PATH=str(bare))
    assert done.returncode == 1
    assert "E: no route to the mirror" in done.stderr
    assert "missing: tmux; type: apt-get install -y --no-install-recommends tmux\n" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root")
def test_without_sudo_run_prints_the_install_command(tmp_path: Path, bare: Path) -> None:
    stubs(bare, ["ssh", "rsync", "apt-get"])
    project = copy_into(tmp_path / "project")
    argv = [require("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-s", "true"]
    script = (project / "run").read_text()  # on stdin, as nobody may not enter the test's folder
    environment = {"PATH": str(bare), "HOME": "/"}
    shared = Path("/tmp") / f"torchfab-test-{os.getpid()}"
    shutil.copytree(bare, shared, symlinks=True)
    shared.chmod(0o755)
    environment["PATH"] = str(shared)
    try:
        done = subprocess.run(argv, input=script, env=environment, capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(shared)
    assert done.returncode == 1
    assert done.stderr == "run: missing: tmux; type: sudo apt-get install -y --no-install-recommends tmux\n"


def test_debians_python_without_ensurepip_is_an_error_with_the_package(tmp_path: Path, bare: Path) -> None:
    stubs(bare, NEEDED)
    stub(bare, "python3.11", 'case "$*" in *ensurepip*) exit 1;; *version_info*) echo 3 11;; esac')
    stub(bare, "apt-get", "exit 100")
    done = call(copy_into(tmp_path / "project"), "true", PATH=str(bare))
    assert done.returncode == 1
    assert "missing: the venv module of python3.11" in done.stderr
    assert "apt-get install -y --no-install-recommends python3.11-venv" in done.stderr


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_test_programs_are_required_only_in_ci(project: Path, bare: Path, ci: str, code: int) -> None:
    stub(project / ".venv" / "bin", "inv", "echo invoked")
    stubs(bare, NEEDED)
    (bare / "python3").symlink_to(sys.executable)
    done = call(project, "inv", PATH=str(bare), CI=ci)
    assert done.returncode == code
    assert "pdsh" in done.stderr
    assert ("tests that need them are skipped" in done.stderr) is (not ci)

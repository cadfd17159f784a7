"""`--setup`: its changes of the environment reach the ranks; its failure stops the launch."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import Node
from tests.integration.fab import Fab
from tests.integration.faults_injected import refused
from tests.integration.jobs import ok
from tests.support import require

SHOW = """import os, shutil, sys
names = ("VIRTUAL_ENV", "CONDA_PREFIX", "LOADED", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
print(os.environ["TORCHFAB_NODE_RANK"], "prefix", sys.prefix, "tool", shutil.which("env-tool"),
      *(f"{name}={os.environ.get(name)}" for name in names))
"""
# A conda and a `module` as each shell's start-up files define them; all print, which must do no harm.
SH = """echo welcome
conda() { export CONDA_PREFIX="$2"; export PATH="$2/bin:$PATH"; }
module() { eval "export LOADED=$2; export LD_LIBRARY_PATH=/opt/$2/lib"; }
"""
START_UP = {
    "bash": (".bash_profile", f"case $- in *i*) ;; *) return ;; esac\n{SH}"),
    "zsh": (".zshrc", SH),
    "fish": (
        ".config/fish/config.fish",
        """echo welcome
function conda; set -gx CONDA_PREFIX $argv[2]; set -gx PATH $argv[2]/bin $PATH; end
function module; set -gx LOADED $argv[2]; set -gx LD_LIBRARY_PATH /opt/$argv[2]/lib; end
""",
    ),
    "tcsh": (
        ".tcshrc",
        """echo welcome
if (! $?prompt) exit
alias conda 'set env=\\!:2; setenv CONDA_PREFIX "$env"; setenv PATH "${env}/bin:$PATH"'
alias module 'eval "setenv LOADED \\!:2; setenv LD_LIBRARY_PATH /opt/\\!:2/lib"'
""",
    ),
}
ACTIVATE = {"bash": "activate", "zsh": "activate", "fish": "activate.fish", "tcsh": "activate.csh"}


@contextlib.contextmanager
def login_shell(node: Node, shell: str) -> Iterator[None]:
    """Give the node's user another login shell, with its start-up file."""
    name, text = START_UP[shell]
    passwd, start_up = node.home.parent / "passwd", node.home / name
    before = passwd.read_text()
    first, *others = before.splitlines()
    start_up.parent.mkdir(parents=True, exist_ok=True)
    start_up.write_text(text)
    passwd.write_text("\n".join([f"{first.rpartition(':')[0]}:{require(shell)}", *others]) + "\n")
    try:
        yield
    finally:
        passwd.write_text(before)
        start_up.unlink()


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with our packages, and a program of its own."""
    path = tmp_path_factory.mktemp("setup") / "my env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    (packages,) = path.glob("lib/python*/site-packages")
    (packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (path / "bin" / "env-tool").write_text("#!/bin/sh\n")
    (path / "bin" / "env-tool").chmod(0o755)
    return path


def launch(fab: Fab, *lines: str, flags: tuple[str, ...] = ()) -> str:
    """Launch a script that shows its environment with a gpus file of these lines; return its output."""
    fab.write("show.py", SHOW)
    gpus = fab.write("my_gpus", "".join(f"node{number} {line}\n" for number, line in enumerate(lines, start=1)))
    return ok(fab("launch-per-gpu", "--gpufile", str(gpus), *flags, "--follow", "--", "show.py")).stdout


@pytest.mark.parametrize("shells", [("bash", "zsh"), ("fish", "tcsh")], ids=lambda pair: "-".join(pair))
@pytest.mark.parametrize("kind", ["venv", "conda", "module"])
def test_setup_in_each_login_shell_reaches_the_ranks(fab: Fab, venv: Path, shells: tuple[str, str], kind: str) -> None:
    setups = {
        "venv": {shell: f'source "{venv}/bin/{ACTIVATE[shell]}"' for shell in shells},
        "conda": dict.fromkeys(shells, f'conda activate "{venv}"'),
        "module": dict.fromkeys(shells, "module load cuda; true"),
    }[kind]
    with login_shell(fab.cluster.node(0), shells[0]), login_shell(fab.cluster.node(1), shells[1]):
        shown = launch(fab, *(f"setup='{setups[shell]}'" for shell in shells))
    expected = {
        "venv": f"prefix {venv} tool {venv}/bin/env-tool VIRTUAL_ENV={venv}",
        "conda": f"prefix {venv} tool {venv}/bin/env-tool VIRTUAL_ENV=None CONDA_PREFIX={venv}",
        "module": f"prefix {sys.prefix} tool None VIRTUAL_ENV=None CONDA_PREFIX=None LOADED=cuda "
        "LD_LIBRARY_PATH=/opt/cuda/lib",
    }[kind]
    assert [f"{rank} {expected}" in shown for rank in (0, 1)] == [True, True], shown


def test_flags_override_what_setup_sets_and_setup_what_torchfab_chooses(fab: Fab, venv: Path) -> None:
    setup = f"source '{venv}/bin/activate'; export LOADED=setup OMP_NUM_THREADS=7"
    flags = ("--setup", setup, "--env", "LOADED=flag", "--python", sys.executable)
    shown = launch(fab, "", flags=flags)
    assert f"0 prefix {sys.prefix} tool {venv}/bin/env-tool" in shown
    assert "LOADED=flag LD_LIBRARY_PATH=None OMP_NUM_THREADS=7" in shown


def test_a_dry_run_shows_the_setup_and_runs_it(fab: Fab, venv: Path) -> None:
    setup = f"source '{venv}/bin/activate'; export LOADED=cuda"
    done = ok(fab(*fab.launch("--setup", setup, "--dry-run", "--nproc-per-node", "1", "--port", "4000")))
    assert f"# setup: {setup}" in done.stdout
    assert "# setup on node[1-2]: /bin/bash sets LOADED, PATH, VIRTUAL_ENV" in done.stdout
    assert f"; the interpreter is {venv}/bin/python" in done.stdout
    assert f"\n{setup}\nSETUP\n" in done.stdout
    fab.assert_nothing_left()


def test_a_setup_that_fails_on_a_node_stops_the_launch(fab: Fab) -> None:
    gpus = fab.write("my_gpus", "node1 setup='export A=1'\nnode2 setup='echo looking; module load cuda'\n")
    done = fab("launch-per-gpu", "--gpufile", str(gpus), "--", "light.py", "60")
    assert done.rc == 1, done
    assert "error: 1 of 2 hosts failed; nothing was started" in done.stderr
    assert "  node2: --setup failed in /bin/bash: it ended with status 127\n" in done.stderr
    assert "looking\n" in done.stderr
    assert "module: command not found" in done.stderr
    fab.assert_nothing_left()


def test_doctor_and_run_find_what_only_the_setup_loads(fab: Fab, venv: Path) -> None:
    hosts = fab.write("my_hosts", f"node1 setup='source \"{venv}/bin/activate\"'\nnode2\n")
    common = ("--hostfile", str(hosts), "--setup", f"export PATH='{venv}/bin':$PATH")
    done = fab("doctor", *common, "--json", config={"setup": "false"})  # the flag overrides the setting
    loaded = [node["facts"]["setup"]["facts"]["python"] for node in json.loads(done.stdout)["nodes"]]
    assert loaded == [f"{venv}/bin/python"] * 2, done
    found = [node["facts"]["python"]["path"] for node in json.loads(done.stdout)["nodes"]]
    assert found == [f"{venv}/bin/python"] * 2, done
    assert f"{venv}/bin/env-tool" in ok(fab("run", *common, "--", "which", "env-tool")).stdout
    done = fab("doctor", "--hostfile", str(hosts), config={"setup": "module load cuda"})
    assert done.rc == 1, done
    assert "error: node2: --setup failed in /bin/bash: it ended with status 127" in done.stdout


def test_a_setup_that_hangs_ends_with_its_time_out(fab: Fab) -> None:
    done = fab(*fab.launch("--setup", "sleep 50"), config={"setup_timeout_s": 1})
    assert done.rc == 1, done
    assert "node[1-2]: --setup failed in /bin/bash: it did not end within 1 s" in done.stderr
    fab.assert_nothing_left()


def test_a_secret_of_a_setup_is_in_no_file(fab: Fab) -> None:
    fab.write("token", "tok-4711")
    fab.write("show.py", "import os; print('has', os.environ['MY_TOKEN'] == 'tok-4711', os.environ['MY_TOKEN'])")
    setup = f"export MY_TOKEN=$(cat '{fab.workdir}/token')"
    done = ok(fab(*fab.launch("--name", "quiet", "--setup", setup, "--follow", "--", "show.py", gpus=True)))
    assert "has True" in done.stdout
    assert "tok-4711" not in done.stdout
    found = [
        path
        for path in fab.folder.rglob("*")
        if path.is_file() and path.name not in ("token", "show.py") and b"tok-4711" in path.read_bytes()
    ]
    assert [path.name for path in found if path.name not in ("output.log", "stdout.log")] == []


def test_a_secret_written_into_a_setup_is_refused(fab: Fab) -> None:
    done = fab(*fab.launch("--setup", "export MY_TOKEN=tok-4711"))
    refused(done, "--setup contains the value of MY_TOKEN", "fix: read the value there")

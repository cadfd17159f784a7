"""The checks of phase one: each problem of a node is named, with its fix."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torchfab.remote import tmux
from torchfab.remote.job import requirement_checks

FakeTmux = Callable[..., None]
Make = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _good_tmux(fake_tmux: FakeTmux) -> None:
    """A tmux of a supported version without sessions, by default."""
    fake_tmux("tmux 3.3a")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Give make(**values): the request of a launch on a healthy node, in a working directory that has a train.py."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "train.py").write_text("")

    def build(**values: Any) -> dict[str, Any]:
        base = {
            "session": "a-node0",
            "node_rank": 0,
            "workdir": str(tmp_path / "project"),
            "python": sys.executable,
            "script": "train.py",
            "modules": ["json"],
            "python_path": None,
            "master_addr": "127.0.0.1",
            "peers": [],
            "one_machine": True,
        }
        return {**base, **values}

    return build


def problems(request: dict[str, Any]) -> list[str]:
    return [f"{each['what']} | {each['fix']}" for each in requirement_checks.run(request, os.environ)[1]]


def test_a_healthy_node_has_no_problems_and_its_versions(make: Make) -> None:
    facts = {"tmux": "3.3", "python": ".".join(map(str, sys.version_info[:3])), "versions": {"json": ""}}
    assert requirement_checks.run(make(), os.environ) == (facts, [])


def test_a_missing_working_directory_is_named(make: Make) -> None:
    assert problems(make(workdir="/no/such/folder")) == [
        "the working directory /no/such/folder does not exist | copy your code there, or give --workdir"
    ]


def test_a_missing_script_is_named(make: Make, tmp_path: Path) -> None:
    assert problems(make(script="it's.py")) == [
        f"the script {tmp_path}/project/it's.py does not exist | copy your code there, or give --workdir"
    ]


def test_a_folder_is_not_a_script(make: Make, tmp_path: Path) -> None:
    assert problems(make(script=".")) == [
        f"{tmp_path}/project/. is a folder | name the script in it, or the module: -- -m package.module"
    ]


def test_a_script_may_be_an_absolute_path_or_a_module(make: Make, tmp_path: Path) -> None:
    assert problems(make(script=str(tmp_path / "project" / "train.py"))) == []
    assert problems(make(script=None)) == []


def test_a_missing_python_is_named(make: Make) -> None:
    assert problems(make(python="/no/such/python")) == [
        "there is no /no/such/python | give an interpreter that exists on every node with --python"
    ]


def test_a_python_that_reads_stdin_does_not_swallow_requests(make: Make, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\ncat > /dev/null\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    ours, theirs = os.pipe()
    os.write(theirs, b"the next request")
    os.close(theirs)
    stdin = os.dup(0)
    try:
        os.dup2(ours, 0)
        assert problems(make(python=str(program))) == []
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
    assert os.read(ours, 100) == b"the next request"
    os.close(ours)


def test_a_python_may_print_invalid_utf_8(make: Make, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_bytes(b"#!/bin/sh\necho 'no \xff' >&2; exit 1\n")
    program.chmod(0o755)
    (problem,) = problems(make(python=str(program)))
    assert problem.startswith(f"{program} does not run: no \ufffd |")


def test_a_python_that_does_not_run_is_quoted(make: Make, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho first >&2; echo broken library >&2; exit 1\n")
    program.chmod(0o755)
    assert problems(make(python=str(program))) == [
        f"{program} does not run: broken library | give an interpreter that works on every node with --python"
    ]


def test_each_missing_module_is_named(make: Make) -> None:
    python, names = sys.executable, ("no_such_module", "json.no_such")
    assert problems(make(modules=["json", *names])) == [
        f"{python} has no module {name} | install it there: {python} -m pip install {name}; "
        "or give --workdir, or --python"
        for name in names
    ]


def test_modules_are_found_in_the_working_directory_and_on_the_jobs_path(make: Make, tmp_path: Path) -> None:
    (tmp_path / "project" / "beside.py").write_text("")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "elsewhere.py").write_text("")
    assert problems(make(modules=["beside", "elsewhere"], python_path=str(tmp_path / "lib"))) == []


def test_the_address_of_a_peer_that_does_not_resolve_is_named(make: Make) -> None:
    (problem,) = problems(make(peers=["127.0.0.1", "no.such.host.invalid"]))
    assert problem.startswith("addresses of other nodes do not resolve there: no.such.host.invalid | ")


def test_a_missing_tmux_is_named(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert problems(make()) == ["tmux is not installed | install it there, for example: sudo apt-get install -y tmux"]


@pytest.mark.parametrize("text", ["tmux 3.1c", "tmux 2.9a", "tmux 1.8"])
def test_an_old_tmux_is_named_with_the_required_version(make: Make, fake_tmux: FakeTmux, text: str) -> None:
    fake_tmux(text)
    (problem,) = problems(make())
    assert problem == f"tmux is {text[5:8]}, 3.2 or newer is needed | install a newer tmux there"


def test_a_tmux_that_does_not_run_is_quoted(make: Make, tmp_path: Path) -> None:
    (tmp_path / "fake" / "tmux").write_text("#!/bin/sh\necho broken library >&2; exit 3\n")
    (problem,) = problems(make())
    assert problem.startswith("tmux does not run: broken library | ")


def test_an_existing_session_is_a_problem(make: Make, fake_tmux: FakeTmux, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tmux, "_is_listening", lambda _: True)
    fake_tmux("tmux 3.3a", '[ "$*" = "-L torchfab -f /dev/null has-session -t =a-node0" ]')
    (problem,) = problems(make())
    what, _, fix = problem.partition(" | ")
    assert what == "the tmux session a-node0 exists already, from another launch machine or folder"
    assert fix == "choose another --name, or stop that job from where it was launched"


def test_a_master_that_does_not_resolve_is_named(make: Make) -> None:
    (problem,) = problems(make(master_addr="no.such.host.invalid"))
    assert problem.startswith("the master address no.such.host.invalid does not resolve | ")


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "127.0.1.1", "::1"])
def test_a_master_that_is_this_machine_on_another_node_is_named(make: Make, address: str) -> None:
    (problem,) = problems(make(node_rank=1, one_machine=False, master_addr=address))
    assert problem.startswith(f"the master address {address} is this node itself here (")


def test_a_missing_program_is_reported_with_its_install_command(make: Make) -> None:
    program = {"names": ["no-such-mpirun"], "install": "sudo apt-get install -y openmpi-bin", "version_flag": "-V"}
    assert problems(make(programs=[program])) == [
        "there is no no-such-mpirun on PATH | install it there: sudo apt-get install -y openmpi-bin"
    ]


def test_a_missing_module_is_reported_with_the_launchers_package(make: Make) -> None:
    (problem,) = problems(make(modules=["json", "no_such_ai"], installs={"no_such_ai": "--no-deps no-such-ai==0.5"}))
    assert f"{sys.executable} -m pip install --no-deps no-such-ai==0.5" in problem


def test_versions_of_modules_and_programs_are_returned(make: Make) -> None:
    program = {"names": ["python3"], "install": "", "version_flag": "--version"}
    versions = requirement_checks.run(make(modules=["json", "pytest"], programs=[program]), os.environ)[0]["versions"]
    assert (versions["json"], versions["pytest"]) == ("", pytest.__version__)
    assert versions["python3"].startswith("3.")


def test_the_version_of_a_module_is_that_of_its_metadata(make: Make) -> None:
    # Read from the folder's name if that contains it, otherwise from importlib.metadata.
    from importlib.metadata import version

    names = ["pytest", "hypothesis", "yaml", "json"]
    versions = requirement_checks.run(make(modules=names), os.environ)[0]["versions"]
    assert versions == {"pytest": version("pytest"), "hypothesis": version("hypothesis"), "yaml": "", "json": ""}


def test_a_given_master_address_must_be_one_of_node_0(make: Make) -> None:
    given = {"master_addr": "192.0.2.7", "master_is_given": True}
    (found,) = problems(make(**given))
    assert found.startswith("the master address 192.0.2.7 is not an address of this host, which is node 0")
    assert problems(make(**given, node_rank=1, one_machine=False)) == []
    assert problems(make(master_addr="127.0.0.1", master_is_given=True)) == []


def test_a_program_must_be_on_the_node(make: Make, tmp_path: Path) -> None:
    tool = tmp_path / "project" / "tool"
    tool.write_text("#!/bin/sh\n")
    assert "is not executable | chmod +x it there" in problems(make(program="./tool", script="./tool"))[0]
    assert "run it as -- ./tool" in problems(make(program="tool", script=None))[0]
    assert problems(make(program="sh", script=None)) == []


@pytest.mark.parametrize("python", ["/bin/sh", "/bin/echo"])
def test_another_program_is_no_interpreter(make: Make, python: str) -> None:
    (found,) = problems(make(python=python))
    assert "is not a Python" in found or "does not run" in found


@pytest.mark.parametrize(
    ("text", "is_problem"),
    [
        ("compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\n", False),
        ("distributed_type: MULTI_CPU\n", False),
        ("distributed_type: MULTI_GPU\n", True),
        ('"distributed_type": "FSDP",\n', True),
        ("distributed_type\n", False),
        ("", False),
    ],
)
def test_a_configuration_of_accelerate_that_starts_ranks_is_a_problem(
    tmp_path: Path, text: str, is_problem: bool
) -> None:
    environ = {"HF_HOME": str(tmp_path)}
    assert requirement_checks.check_accelerate_config(environ) == []
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text(text)
    found = requirement_checks.check_accelerate_config(environ)
    assert bool(found) is is_problem
    assert all("fab import" in each["fix"] for each in found)


PARSER = "import argparse, sys; p = argparse.ArgumentParser(); p.add_argument('--a'); p.parse_args(sys.argv[1:])"


def test_wrong_arguments_of_a_launcher_are_a_problem(make: Make) -> None:
    assert problems(make(parser=["-c", PARSER, "--a", "1"])) == []
    assert problems(make(parser=["-c", PARSER, "--foo", "1"])) == [
        "the launcher's arguments are wrong: unrecognized arguments: --foo 1 | correct them"
    ]
    assert problems(make(parser=["-c", "raise SystemExit(1)"])) == []

"""Run the script of a dry run in a real bash, and compare the processes that start with the plan."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import make_job, make_nodes
from tests.hostile import HOSTILE, environments, texts
from tests.support import require
from torchfab.core.dry_run import render_dry_run
from torchfab.core.specs import NodePlan, Plan, Process

# A stub of tmux: runs the arguments after the window's name in the foreground.
TMUX = '#!/bin/sh\nwhile [ "$1" != -n ]; do shift; done\nshift 2\nexec "$@" < /dev/null\n'
PROGRAM = """\
import json, os, sys
with open(sys.argv[1], "w") as file:
    json.dump([os.getcwd(), sys.argv[2:], dict(os.environ)], file)
print("ran")
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder with shell metacharacters in its name, a stub of tmux, and a program that records its environment."""
    with tempfile.TemporaryDirectory(prefix="it's a $HOME; ") as name:
        folder = Path(name)
        (folder / "tmux").write_text(TMUX)
        (folder / "tmux").chmod(0o755)
        (folder / "program.py").write_text(PROGRAM)
        (folder / "work dir").mkdir()
        yield folder


def plan_of(place: Path, commands: list[tuple[list[str], dict[str, str]]], secrets: Mapping[str, str]) -> Plan:
    """Return a plan with a process for each argv and environment; the n-th writes to the file n.json."""
    (node,) = make_nodes("localhost")
    job = make_job(workdir=str(place / "work dir"), secrets=dict(secrets))
    program = (sys.executable, "-S", "-X", "utf8", str(place / "program.py"))
    processes = tuple(
        Process(f"rank-{index}", (*program, str(place / f"{index}.json"), *argv), env)
        for index, (argv, env) in enumerate(commands)
    )
    return Plan(job, (NodePlan(node, str(place / "job"), processes),), len(processes), {"job": "gpt2"})


def paste(place: Path, text: str, environ: Mapping[str, str]) -> None:
    """Run the script in bash."""
    env = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}", **environ}
    script = text.encode("utf-8", "surrogateescape") + b"\n"
    done = subprocess.run(["bash"], input=script, env=env, capture_output=True, check=False)
    shown = [
        line for line in done.stderr.splitlines() if not re.search(rb"terminal process group|no job control", line)
    ]
    assert (done.returncode, shown) == (0, []), done.stderr


def received(place: Path, number: int) -> Any:
    return json.loads((place / f"{number}.json").read_text())


def check(place: Path, commands: list[tuple[list[str], dict[str, str]]], secrets: Mapping[str, str]) -> str:
    """Render and run the script, compare the processes with the plan, and return the script."""
    for old in place.glob("*.json"):
        old.unlink()
    text = render_dry_run(plan_of(place, commands, secrets), lambda _: ("bash", "-s"))
    paste(place, text, secrets)
    for number, (argv, env) in enumerate(commands):
        cwd, argv_there, env_there = received(place, number)
        assert cwd == str(place / "work dir")
        assert argv_there == argv
        expected = {**secrets, **env}
        assert {name: env_there.get(name) for name in expected} == expected
    return text


@settings(max_examples=30)
@given(st.lists(texts(), max_size=8), environments())
def test_any_argv_and_environment_arrive_through_bash(place: Path, argv: list[str], env: dict[str, str]) -> None:
    check(place, [(argv, env)], {})


@settings(max_examples=15)
@given(argv=st.lists(texts(), max_size=3), env=environments(2), tails=st.lists(texts(), min_size=1, max_size=3))
def test_secrets_come_from_the_shell_and_not_from_the_script(
    place: Path, argv: list[str], env: dict[str, str], tails: list[str]
) -> None:
    secrets = {f"V{number}_TOKEN": f"hunter2{tail}" for number, tail in enumerate(tails)}
    text = check(place, [(argv, env)], secrets)
    assert "hunter2" not in text


def test_every_hostile_text_arrives(place: Path) -> None:
    argv = [text for text in HOSTILE.values() if len(text) < 1000]
    env = {f"V_{number}": text for number, text in enumerate(argv)}
    check(place, [(argv, env), (argv[::-1], {"V_0": "another"})], {"V_KEY": "".join(argv)})


def test_200_kilobytes_arrive(place: Path) -> None:
    large = HOSTILE["100 KB"]
    check(place, [([large], {"V_A": large})], {"V_SECRET": large})


def test_lines_equal_to_a_here_document_delimiter_arrive(place: Path) -> None:
    ends = "\n".join(["", "TORCHFAB", "RUN", "TORCHFAB1", "RUN1", "RUN2", "EOF", ""])
    check(place, [([ends], {"V_A": ends})], {})


def test_a_secret_that_is_not_exported_prevents_the_start(place: Path) -> None:
    for old in place.glob("*.json"):
        old.unlink()
    text = render_dry_run(plan_of(place, [([], {})], {"V_TOKEN": "x"}), lambda _: ("bash", "-s"))
    env = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}"}
    done = subprocess.run(["bash"], input=text.encode(), env=env, capture_output=True, check=False)
    assert b"V_TOKEN" in done.stderr
    assert not list(place.glob("*.json"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_setup_and_before_run_in_the_login_shell(place: Path, shell: str, tmp_path: Path) -> None:
    for old in place.glob("*.json"):
        old.unlink()
    plan = plan_of(place, [(["it's"], {"V_A": "job's"})], {})
    setup = {"fish": "set -gx V_A x; set -gx V_B 'it is'", "tcsh": "setenv V_A x; setenv V_B 'it is'"}
    job = replace(plan.job, setup=setup.get(shell, "export V_A=x V_B='it is'"), before='echo "$V_A $V_B" > before')
    text = render_dry_run(replace(plan, job=job), lambda _: ("bash", "-s"))
    paste(place, text, {"SHELL": require(shell), "HOME": str(tmp_path)})
    _, argv, env = received(place, 0)
    assert (argv, env["V_A"], env["V_B"], env.get("TORCHFAB_SETUP")) == (["it's"], "job's", "it is", None)
    assert (place / "work dir" / "before").read_text() == "job's it is\n"


def test_files_are_private_and_the_log_has_the_output(place: Path) -> None:
    check(place, [([], {})], {"V_TOKEN": "x"})
    folder = place / "job" / "rank-0"
    assert [oct((folder / name).stat().st_mode & 0o777) for name in (".", "run.sh", "output.log")] == [
        "0o700",
        "0o600",
        "0o600",
    ]
    assert set((folder / "output.log").read_text().splitlines()) == {"ran"}


def test_comments_cannot_inject_commands(place: Path) -> None:
    plan = plan_of(place, [([], {})], {})
    text = render_dry_run(
        Plan(plan.job, plan.nodes, 1, {"workdir": "/a\ntouch /tmp/x\r; id"}), lambda _: ("bash", "-s"), ["a\nb", ""]
    )
    head = text.partition("\n\n")[0].splitlines()
    assert head == ["# workdir: /a", "# touch /tmp/x", "# ; id", "# a", "# b"]

"""The tasks of `inv`: every flag has help, and each task runs the right commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import invoke
import pytest

import tasks


def all_tasks() -> Iterator[invoke.Task[Any]]:
    return (tasks.namespace[name] for name in tasks.namespace.task_names)


def test_the_tasks_are_those_in_the_documentation() -> None:
    assert sorted(tasks.namespace.task_names) == [
        "bench-gpu",
        "bench-launch",
        "bench-probe",
        "bench-train",
        "bench-why",
        "cluster",
        "diagnose",
        "fuzz",
        "golden",
        "lint",
        "plays",
        "reliability",
        "schemas",
        "stress",
        "test",
    ]


def test_every_argument_of_every_task_has_help() -> None:
    bare = [
        f"{each.name} --{each_argument.name}"
        for each in all_tasks()
        for each_argument in each.get_arguments()
        if not each_argument.help
    ]
    assert bare == []


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that tasks run, recorded in place of running."""
    commands: list[list[str]] = []

    def record(*words: str) -> int:
        commands.append(["python" if word == tasks.PYTHON else word for word in words])
        return 0

    monkeypatch.setattr(tasks, "_run", record)
    return commands


def test_test_passes_its_flags_to_pytest(ran: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHFAB_FUZZ_EXAMPLES", "7")  # a value of the user's own stays
    tasks.test(invoke.Context(), fast=True, match="a or b", options="-x -k 'c d'")
    expected = [
        "-m",
        "pytest",
        "-k",
        "a or b",
        *tasks.PARALLEL,
        "--durations",
        "15",
        "--ignore",
        "tests/integration",
        "-m",
        "not slow",
        "-x",
        "-k",
        "c d",
    ]
    assert ran == [["python", *expected]]
    assert os.environ["TORCHFAB_FUZZ_EXAMPLES"] == "7"


def test_golden_rewrites_records(ran: list[list[str]]) -> None:
    tasks.golden(invoke.Context())
    assert ran == [["python", "-m", "pytest", "--golden"]]


def test_reliability_makes_both_tables_or_one(ran: list[list[str]]) -> None:
    tasks.reliability(invoke.Context())
    assert [("--faults" in words, "--ends" in words) for words in ran] == [(True, False), (False, True)]
    tasks.reliability(invoke.Context(), only="ends")
    assert ran[2:] == ran[1:2]
    with pytest.raises(invoke.Exit, match="error: --only is faults or ends, got 'x'"):
        tasks.reliability(invoke.Context(), only="x")


def test_lint_runs_every_check_before_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[str] = []

    def fail(*words: str) -> int:
        checks.append(words[-1])
        return 1

    monkeypatch.setattr(tasks, "_run", fail)
    monkeypatch.setattr("shutil.which", lambda name: name)
    with pytest.raises(invoke.Exit, match="5 of 5 checks failed"):
        tasks.lint(invoke.Context())
    assert len(checks) == 5


def test_a_failing_program_gives_the_task_its_code() -> None:
    with pytest.raises(invoke.Exit) as caught:
        tasks._succeed("sh", "-c", "exit 3")
    assert caught.value.code == 3


FLAKY = """
import pathlib

def test_passes(): pass

def test_fails_once():
    mark = pathlib.Path(__file__).with_name("mark")
    known = mark.exists()
    mark.touch()
    assert known
"""
BROKEN = "def test_always_fails(): assert 0\n"


@pytest.mark.parametrize(
    ("text", "options", "runs", "code", "last"),
    [
        ("def test_passes(): pass\n", "", 1, 0, ["0 flaky tests"]),
        (FLAKY, "", 2, 0, ["flaky: test_it.py::test_fails_once", "1 flaky test"]),
        (FLAKY + BROKEN, "-p xdist -n 1", 2, 1, ["flaky: test_it.py::test_fails_once", "1 flaky test"]),
        ("import no_such_module\n", "", 1, 2, ["0 flaky tests"]),
    ],
    ids=["passing", "flaky", "flaky and broken", "not importable"],
)
def test_a_test_that_passes_only_when_run_again_is_called_flaky(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    options: str,
    runs: int,
    code: int,
    last: list[str],
) -> None:
    (tmp_path / "test_it.py").write_text(text)
    (tmp_path / "pytest.ini").write_text(f"[pytest]\naddopts = {options}\n")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # a second less
    found = 0
    try:
        tasks._succeed_with_rerun(tasks.PYTHON, "-m", "pytest", str(tmp_path))
    except invoke.Exit as caught:
        found = caught.code
    lines = capfd.readouterr().out.splitlines()
    assert (found, lines[-len(last) :]) == (code, last)
    assert re.search(r"in [0-9.]+s =", lines[-len(last) - 1]), "pytest's own summary"
    assert sum("test session starts" in line for line in lines) == runs


def test_paths_are_shown_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tasks._shown(tmp_path / "a b") == "'a b'"
    assert tasks._shown(Path("/elsewhere/x")) == "/elsewhere/x"


def test_an_error_of_the_cluster_has_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(invoke.Exit, match="error: no such kind of cluster: 'docker'"):
        tasks.cluster(invoke.Context(), kind="docker", dir=str(tmp_path))


def test_removing_a_missing_cluster_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.Cluster.clean", list)
    tasks.cluster(invoke.Context(), dir=str(tmp_path), down=True)
    assert capsys.readouterr().out == f"no cluster is up in {tmp_path}\n"


@pytest.mark.parametrize("value", ["x", "", "0", "-1", "1.5", "1_0", "9" * 30, "٣"])
def test_an_invalid_number_is_an_error(value: str) -> None:
    with pytest.raises(invoke.Exit, match="--rounds is a whole number of at least 1, got") as caught:
        tasks._number("rounds", value)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "words",
    [
        ("fuzz", "--examples"),
        ("fuzz", "--workers"),
        ("stress", "--rounds"),
        ("stress", "--kills"),
        ("cluster", "--nodes"),
    ],
)
def test_an_invalid_number_is_a_one_line_error(words: tuple[str, str]) -> None:
    argv = [sys.executable, "-m", "invoke", words[0], words[1], "x"]
    done = subprocess.run(argv, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {words[1]} is a whole number of at least 1, got 'x'\n"

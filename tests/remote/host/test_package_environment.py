"""`env push` on a node, with a uv that only writes down what it is asked for."""

from __future__ import annotations

import fcntl
import sys
from pathlib import Path
from typing import Any

import pytest

from torchfab.remote.host import environment_marker, package_environment

UV = """#!/bin/sh
echo "$(pwd) $*" >> "{log}"
if [ "$1" = venv ]; then mkdir -p "$4/bin"; ln -sf "{python}" "$4/bin/python"; fi
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the fake uv was called with."""
    (tmp_path / "programs").mkdir()
    (tmp_path / "project").mkdir()
    uv = tmp_path / "programs" / "uv"
    uv.write_text(UV.format(log=tmp_path / "log", python=sys.executable))
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'programs'}:/usr/bin:/bin")
    return tmp_path / "log"


def push(tmp_path: Path, **values: Any) -> dict[str, Any]:
    base = {"folder": str(tmp_path / "my env"), "workdir": str(tmp_path / "project"), "python": "3.11"}
    given = {"requirements": "a==1\n", "digest": "d1", "source": "uv.lock", "timeout_s": 20.0, "requires": ""}
    return package_environment.push({**base, **given, **values})


def problem(answer: dict[str, Any]) -> str:
    (only,) = answer["problems"]
    return f"{only['what']} | {only['fix']}"


def test_uv_makes_the_environment_and_its_list_is_recorded(tmp_path: Path, log: Path) -> None:
    answer = push(tmp_path)
    assert (answer["made"], answer["tool"], answer["python"]) == (True, "uv", ".".join(map(str, sys.version_info[:3])))
    folder, project = tmp_path / "my env", tmp_path / "project"
    assert log.read_text().splitlines() == [
        f"{project} venv --python 3.11 {folder}",
        f"{project} pip sync --python {folder}/bin/python {folder}/torchfab-requirements.txt",
    ]
    assert (folder / "torchfab-requirements.txt").read_text() == "a==1\n"
    mark = environment_marker.read_marker(f"{folder}/bin/python")
    assert mark is not None
    assert (mark["digest"], mark["source"]) == ("d1", "uv.lock")


def test_a_python_that_the_project_does_not_support_is_refused_and_nothing_is_left(tmp_path: Path, log: Path) -> None:
    have = ".".join(map(str, sys.version_info[:3]))
    text = problem(push(tmp_path, requires=">=3.9, <3.10"))
    assert text == (
        f"the project needs Python >=3.9, <3.10, and the environment would have {have} | "
        "name another interpreter of that node: --python python3.12, or a path"
    )
    assert not (tmp_path / "my env").exists()
    assert "pip" not in log.read_text()
    assert push(tmp_path, requires=">=3.9, !=3.9.1")["made"]


@pytest.mark.parametrize(
    ("version", "requires", "fits"),
    [
        *(("3.11.7", each, True) for each in ("", ">=3.11", ">=3.9,<4", "==3.11.*", "~=3.10", "~=3.11.2", "!=3.12.*")),
        *(("3.11.7", each, False) for each in (">=3.12", "<3.11", "==3.10.*", "~=3.11.8", "!=3.11.*", ">3.11.7")),
        *(("3.13.0rc1", each, True) for each in (">=3.13", "<3.14", "unknown")),
    ],
)
def test_versions_of_python_are_compared_by_number(version: str, requires: str, fits: bool) -> None:
    if fits:
        package_environment._check_version(version, requires)
    else:
        with pytest.raises(package_environment.PushError, match="the project needs Python"):
            package_environment._check_version(version, requires)


def test_folders_above_the_environment_are_made(tmp_path: Path, log: Path) -> None:
    assert push(tmp_path, folder=str(tmp_path / "envs" / "a" / "b"))["made"]


def test_the_same_list_is_not_made_again_and_another_is(tmp_path: Path, log: Path) -> None:
    push(tmp_path)
    assert not push(tmp_path)["made"]
    assert push(tmp_path, digest="d2")["made"]
    assert len(log.read_text().splitlines()) == 4


def test_an_environment_whose_making_failed_is_not_taken_for_a_finished_one(tmp_path: Path, log: Path) -> None:
    push(tmp_path)
    uv = tmp_path / "programs" / "uv"
    uv.write_text(uv.read_text() + 'test "$1" = venv || { echo no such package; exit 3; }\n')
    text = problem(push(tmp_path, digest="d2"))
    assert text == "uv pip sync --python … ended with status 3\n    no such package | see its output above"
    assert environment_marker.read_marker(f"{tmp_path}/my env/bin/python") is None
    uv.write_text(UV.format(log=log, python=sys.executable))
    assert push(tmp_path, digest="d2")["made"]  # the same command succeeds when the cause is mended


def test_a_push_that_was_killed_is_begun_anew(tmp_path: Path, log: Path) -> None:
    push(tmp_path)
    (tmp_path / "my env" / environment_marker.NAME).unlink()
    assert push(tmp_path)["made"]


def test_a_folder_of_another_make_is_left_alone(tmp_path: Path, log: Path) -> None:
    (tmp_path / "my env").mkdir()
    assert push(tmp_path)["made"]  # an empty one
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    text = problem(push(tmp_path, folder=str(tmp_path / "other")))
    assert text.startswith(f"{tmp_path}/other is not empty, and was not created by env push | remove it there")
    assert [each.name for each in (tmp_path / "other").iterdir()] == ["file"]


def test_without_uv_the_interpreter_is_named_where_it_is_missing(tmp_path: Path, log: Path) -> None:
    (tmp_path / "programs" / "uv").unlink()
    assert problem(push(tmp_path, python="python9")).startswith("there is no python9 | name an interpreter")


def test_another_push_into_the_folder_is_awaited(tmp_path: Path, log: Path) -> None:
    with open(tmp_path / "my env.torchfab-lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another env push is running" in problem(push(tmp_path, timeout_s=0.3))
    assert push(tmp_path)["made"]


def test_a_missing_working_directory_is_named(tmp_path: Path, log: Path) -> None:
    assert "the working directory /none does not exist" in problem(push(tmp_path, workdir="/none"))

"""The programs that phase one looks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchfab.remote.host import programs


def program(folder: Path, name: str, says: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder that alone is PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def wanted(*names: str) -> list[dict[str, object]]:
    return [{"names": list(names), "install": "sudo apt-get install -y it", "version_flag": "--version"}]


def test_a_program_that_is_there_tells_its_version(path: Path) -> None:
    program(path, "mpirun.openmpi", "mpirun.openmpi (OpenRTE) 4.1.4")
    assert programs.check(wanted("mpirun.openmpi"), "python") == ({"mpirun.openmpi": "4.1.4"}, [])


def test_a_missing_program_is_a_problem_with_the_command_that_installs_it(path: Path) -> None:
    assert path.is_dir()
    assert programs.check(wanted("orterun", "mpiexec.hydra"), "/venv/bin/python") == (
        {},
        [
            {
                "what": "there is no orterun or mpiexec.hydra on PATH",
                "fix": "install it there: sudo apt-get install -y it",
            }
        ],
    )


def test_one_of_several_is_enough_and_all_that_are_there_are_told(path: Path) -> None:
    program(path, "b", "no number")
    program(path, "c", "c-2.34 (+debug)")
    assert programs.check(wanted("a", "b", "c"), "python") == ({"b": "", "c": "2.34"}, [])


def test_a_program_beside_the_interpreter_is_found_first(path: Path, tmp_path: Path) -> None:
    program(path, "ds", "1.0")
    program(tmp_path, "ds", "2.0")
    assert programs.check(wanted("ds"), str(tmp_path / "python"))[0] == {"ds": "2.0"}

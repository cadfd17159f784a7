"""The programs that phase one checks for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchfab.remote.host import programs


def program(folder: Path, name: str, output: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is the only entry of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def requirement(*names: str) -> list[dict[str, object]]:
    return [{"names": list(names), "install": "sudo apt-get install -y it", "version_flag": "--version"}]


def test_the_version_of_an_installed_program_is_returned(path: Path) -> None:
    program(path, "mpirun.openmpi", "mpirun.openmpi (OpenRTE) 4.1.4")
    assert programs.check(requirement("mpirun.openmpi"), "python", os.environ) == ({"mpirun.openmpi": "4.1.4"}, [])


def test_a_missing_program_is_reported_with_its_install_command(path: Path) -> None:
    assert path.is_dir()
    assert programs.check(requirement("orterun", "mpiexec.hydra"), "/venv/bin/python", os.environ) == (
        {},
        [
            {
                "what": "there is no orterun or mpiexec.hydra on PATH",
                "fix": "install it there: sudo apt-get install -y it",
            }
        ],
    )


def test_one_alternative_suffices_and_all_versions_are_returned(path: Path) -> None:
    program(path, "b", "no number")
    program(path, "c", "c-2.34 (+debug)")
    assert programs.check(requirement("a", "b", "c"), "python", os.environ) == ({"b": "", "c": "2.34"}, [])


def test_a_program_beside_the_interpreter_takes_precedence(path: Path, tmp_path: Path) -> None:
    program(path, "ds", "1.0")
    program(tmp_path, "ds", "2.0")
    assert programs.check(requirement("ds"), str(tmp_path / "python"), os.environ)[0] == {"ds": "2.0"}

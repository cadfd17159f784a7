"""The interpreter of the training where torchfab is installed beside it."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

import torchfab
from torchfab.launching.interpreter import default_python


def make_python(folder: Path, name: str = "python") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Torchfab in an environment of its own, without torch."""
    monkeypatch.setattr(torchfab, "__file__", str(tmp_path / "tool" / "lib" / "torchfab" / "__init__.py"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "tool"))
    monkeypatch.setattr(sys, "executable", make_python(tmp_path / "tool" / "bin", "python3"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_in_the_clone_it_is_the_one_that_runs_fab(tmp_path: Path) -> None:
    assert default_python({"VIRTUAL_ENV": str(tmp_path)}, tmp_path) == sys.executable


@pytest.mark.usefixtures("installed")
def test_the_activated_environment_comes_first(tmp_path: Path) -> None:
    active, conda = make_python(tmp_path / "venv" / "bin"), make_python(tmp_path / "conda" / "bin")
    make_python(tmp_path / ".venv" / "bin")
    environ = {"VIRTUAL_ENV": str(tmp_path / "venv"), "CONDA_PREFIX": str(tmp_path / "conda")}
    assert default_python(environ, tmp_path) == active
    assert default_python({**environ, "VIRTUAL_ENV": ""}, tmp_path) == conda
    assert default_python({**environ, "VIRTUAL_ENV": str(tmp_path / "removed")}, tmp_path) == conda


@pytest.mark.usefixtures("installed")
def test_then_the_one_with_torch_beside_torchfab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "torch" or None)
    make_python(tmp_path / ".venv" / "bin")
    conda = {"CONDA_PREFIX": str(tmp_path / "base"), "CONDA_DEFAULT_ENV": "base"}
    assert default_python({**conda, "PATH": str(tmp_path / ".venv" / "bin")}, tmp_path) == sys.executable


@pytest.mark.usefixtures("installed")
def test_then_that_of_the_project_and_the_one_on_path(tmp_path: Path) -> None:
    on_path = make_python(tmp_path / "bin", "python3")
    own = str(tmp_path / "tool" / "bin")
    environ = {"PATH": os.pathsep.join([own, str(tmp_path / "bin")])}
    assert default_python(environ, tmp_path) == on_path
    assert default_python({"PATH": own}, tmp_path) == sys.executable
    project = make_python(tmp_path / ".venv" / "bin")
    assert default_python(environ, tmp_path) == project

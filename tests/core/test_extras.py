"""What to type where a package is missing that only some commands need."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from torchfab.core import extras


def test_an_installed_torchfab_names_the_versions_of_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["rich>=13", "kubernetes-other>=1", "kubernetes>=31; extra == 'kubernetes'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    error = extras.missing("kubernetes", "kubernetes", "launch-kubernetes")
    assert "launch-kubernetes needs the package kubernetes (torchfab[kubernetes])" in error.message
    assert error.fix == f"{sys.executable} -m pip install 'kubernetes>=31'"


def test_the_clone_names_the_version_that_it_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", not_installed)
    assert extras.requirement("kubernetes", "kubernetes").startswith("kubernetes==")
    assert extras.requirement("no-such-package", "x") == "no-such-package"


def test_the_line_is_that_of_the_tool_that_made_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert extras.install_line("a>=1") == f"uv pip install --python {sys.executable} 'a>=1'"
    (tmp_path / "pipx_metadata.json").touch()
    assert extras.install_line("a>=1") == "pipx inject torchfab 'a>=1'"

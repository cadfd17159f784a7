"""Fixtures for tests of Slurm's part of a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.remote.slurm.programs import Stubs


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stubs:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    made = Stubs(tmp_path / "bin")
    made.put("scancel", f"echo $* >> {tmp_path}/scancelled")
    return made

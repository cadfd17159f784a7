"""Doctor asks a real node: this machine, through a real program behind a local pipe."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from torchfab import doctor
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.specs import Node
from torchfab.doctor import CheckRequirements, Report
from torchfab.remote import server

PARTS = {"machine", "python", "gpus", "tmux", "places", "limits", "interfaces", "environment", "jobs", "code", "port"}


def examine(folder: Path) -> Report:
    wanted = CheckRequirements(workdir=str(folder), python=sys.executable, node_dir=str(folder / "nodes"))
    return doctor.examine([Node(0, "localhost")], ConnectionSettings(), wanted)


def test_every_part_of_a_node_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print(1)\n")
    report = examine(tmp_path)
    (seen,) = report.nodes
    assert set(seen.probe) >= PARTS
    assert not [name for name in PARTS if seen.part(name) is None]
    assert seen.connectivity["connection"]["outcome"] == "connected"
    assert seen.part("code")["files"] == 1
    assert seen.clock is not None
    assert abs(seen.clock.ahead_s) <= 0.1 + seen.clock.within_s
    assert list(tmp_path.iterdir()) == [tmp_path / "train.py"]


def test_an_answer_that_is_a_complaint_is_an_error_about_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.collect, "_look_request", lambda *_: {"op": "checkup"})
    assert "checkup" in server.ANSWERS
    report = examine(tmp_path)
    assert not report.is_healthy("localhost")
    assert "KeyError" in report.errors()[0].what

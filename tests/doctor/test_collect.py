"""Doctor examines a real node: this machine, through the real program behind a local pipe."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.specs import Node
from torchfab.doctor import CheckRequirements, Report, collect
from torchfab.remote import server
from torchfab.transport.messages import Request
from torchfab.transport.messages.doctor import ProbeAnswer

PARTS = {"machine", "python", "gpus", "tmux", "places", "limits", "interfaces", "environment", "jobs", "code", "port"}


class BareProbeRequest(Request[ProbeAnswer], frozen=True, tag="probe"):
    """A request without the fields that the node needs."""

    ANSWER = ProbeAnswer


def examine(folder: Path) -> Report:
    requirements = CheckRequirements(workdir=str(folder), python=sys.executable, node_dir=str(folder / "nodes"))
    return collect.examine([Node(0, "localhost")], ConnectionSettings(), requirements)


def test_every_part_of_a_node_is_probed(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print(1)\n")
    report = examine(tmp_path)
    (node,) = report.nodes
    assert not [name for name in PARTS if getattr(node.parts, name) is None]
    assert node.parts.failed == {}
    assert node.connectivity is not None
    assert node.connectivity.connection is not None
    assert node.connectivity.connection.outcome == "connected"
    assert node.parts.code is not None
    assert node.parts.code.files == 1
    assert node.clock is not None
    assert abs(node.clock.ahead_s) <= 0.1 + node.clock.within_s
    assert list(tmp_path.iterdir()) == [tmp_path / "train.py"]


def test_an_error_answer_is_an_error_about_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_probe_request", lambda *_: BareProbeRequest())
    assert "probe" in server.ANSWERS
    report = examine(tmp_path)
    assert not report.is_healthy("localhost")
    assert "KeyError" in report.errors()[0].what

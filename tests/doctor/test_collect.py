"""Doctor examines a real node: this machine, through the real program behind a local pipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

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


def examine(folder: Path, **more: Any) -> Report:
    requirements = CheckRequirements(
        **{"workdir": str(folder), "python": sys.executable, "node_dir": str(folder / "nodes"), **more}
    )
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


def loads_python(folder: Path) -> str:
    """Return setup commands that put an interpreter first on PATH, as `module load` does."""
    (folder / "loaded").mkdir()
    (folder / "loaded" / "python").symlink_to(sys.executable)
    return f"export PATH='{folder}/loaded':$PATH LOADED=1 NCCL_DEBUG=WARN"


def test_the_interpreter_that_the_setup_loads_is_the_one_that_is_checked(tmp_path: Path) -> None:
    setup = {"setup": loads_python(tmp_path), "setup_timeout_s": 60.0}
    report = examine(tmp_path, python="/no/python", python_is_default=True, **setup)
    (node,) = report.nodes
    assert node.parts.setup is not None
    assert node.parts.setup.facts is not None
    assert node.parts.setup.facts.python == f"{tmp_path}/loaded/python"
    assert "LOADED" in node.parts.setup.facts.changed
    assert node.parts.python is not None
    assert node.parts.python.problem == ""
    assert "python-missing" not in {finding.kind for finding in report.findings}


def test_an_interpreter_that_was_named_is_checked_whatever_the_setup_loads(tmp_path: Path) -> None:
    report = examine(tmp_path, python="/no/python", setup=loads_python(tmp_path), setup_timeout_s=60.0)
    assert "there is no /no/python" in [finding.what for finding in report.errors()]


def test_a_setup_that_fails_is_one_error_and_all_else_is_checked(tmp_path: Path) -> None:
    report = examine(tmp_path, python="/no/python", setup="echo looking; false", setup_timeout_s=60.0)
    kinds = [finding.kind for finding in report.errors()]
    assert "setup-failed" in kinds
    assert "python-missing" not in kinds
    assert "it ended with status 1" in report.errors()[kinds.index("setup-failed")].what
    assert report.nodes[0].parts.tmux is not None

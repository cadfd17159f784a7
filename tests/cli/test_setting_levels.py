"""Where the value of each setting came from: flag, file:line, variable, default."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from torchfab import __main__, fabfile
from torchfab.cli.program import TorchfabProgram


@pytest.fixture
def config(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Run `torchfab FLAGS config --json` in a project; return its settings by name."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run(*flags: str) -> dict[str, dict[str, Any]]:
        argv = ["torchfab", "-r", str(tmp_path), *flags, "config", "--json"]
        monkeypatch.setattr(sys, "argv", argv)
        TorchfabProgram.make(lambda: fabfile).run(argv)
        found: dict[str, dict[str, Any]] = json.loads(capsys.readouterr().out)["settings"]
        return found

    return run


def test_each_value_names_the_strongest_level_that_has_it(config, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "fabric.yaml").write_text("torchfab:\n  fanout: 1\n  grace_s: 1\n  stall_s: 1\n  hostfile: a\n")
    (tmp_path / "torchfab.yaml").write_text("\nfanout: 2\ngrace_s: 2\nstall_s: 2\n")
    (tmp_path / "more.yaml").write_text("torchfab:\n\n  fanout: 4\n")
    monkeypatch.setenv("FABRIC_TORCHFAB_GRACE_S", "3")
    found = config("-f", str(tmp_path / "more.yaml"), "-t", "5", "-i", __file__)
    assert found["fanout"] == {"value": 4, "origin": "more.yaml:3"}
    assert found["grace_s"] == {"value": 3, "origin": "FABRIC_TORCHFAB_GRACE_S"}
    assert found["stall_s"] == {"value": 2, "origin": "torchfab.yaml:4"}
    assert found["hostfile"] == {"value": "a", "origin": "fabric.yaml:5"}
    assert found["gpufile"] == {"value": "gpus", "origin": "default"}
    assert found["connect_timeout_s"] == {"value": 5, "origin": "flag -t"}
    assert found["connect_kwargs.key_filename"] == {"value": [__file__], "origin": "flag -i"}


def test_the_values_are_those_that_a_command_gets(config, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "torchfab.yaml").write_text("records: here\nscript: [a.py, -x]\n")
    found = config()
    assert found["records"]["value"] == "here"
    assert found["script"]["value"] == ["a.py", "-x"]


def test_the_program_of_the_command_runs_the_same_tasks() -> None:
    assert __main__._tasks() is fabfile

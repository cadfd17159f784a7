"""Fixtures for tests of the program that runs on a node."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.remote.place import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """The folder of a job of its own; what it started is ended."""
    job_id = f"test-{secrets.token_hex(4)}"
    made = Place(tmp_path / "it's a node's" / job_id / "node-0", job_id)
    yield made
    made.end()


@pytest.fixture
def fake_tmux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Give fake_tmux(version, script): a `tmux` on PATH that prints this version and otherwise runs this script."""
    folder = tmp_path / "fake"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(version: str, script: str = "exit 1") -> None:
        path = folder / "tmux"
        path.write_text(f'#!/bin/sh\n[ "$1" = -V ] && {{ echo "{version}"; exit; }}\n{script}\n')
        path.chmod(0o755)

    return put

"""A folder with the programs of torchfab/remote/shims, as on a node."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.remote.shims.programs import SHIMS, started


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder, with a blank in its name, that holds the shims and the folders that they expect."""
    folder = tmp_path / "a place"
    for name in ("logs", "errors", "bin"):
        (folder / name).mkdir(parents=True)
    for path in SHIMS:
        shutil.copy(path, folder)
    return folder


@pytest.fixture(autouse=True)
def _end_processes() -> Iterator[None]:
    """End what a test that failed has left, and close the pipes."""
    yield
    for process in started:
        if process.poll() is None:
            process.terminate()  # forwarded to the command
        process.wait(60)
        if process.stdout:
            process.stdout.close()
    started.clear()

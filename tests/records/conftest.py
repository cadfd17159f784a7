"""The records of a launch machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchfab.records import Records


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "jobs")

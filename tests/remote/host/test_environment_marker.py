"""The file that `env push` leaves in an environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from torchfab.remote.host import environment_marker


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"digest": 3, "source": "x"}', "no json"])
def test_a_damaged_mark_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / environment_marker.NAME).write_text(text)
    assert environment_marker.read_marker(f"{tmp_path}/bin/python") is None
    assert environment_marker.read_marker("python3") is None


def test_a_mark_is_read_without_following_the_interpreters_link(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / environment_marker.NAME).write_text(json.dumps({"digest": "d", "source": "s"}))
    assert environment_marker.read_marker(f"{tmp_path}/bin/python") == {"digest": "d", "source": "s"}

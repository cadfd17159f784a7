"""JSON files are replaced atomically."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from torchfab.core.errors import TorchfabError
from torchfab.records import atomic


def test_a_file_is_replaced_and_private(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    path.chmod(0o644)
    atomic.write_json(path, {"a": "é"})
    assert json.loads(path.read_text()) == {"a": "é"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        atomic.write_json(path, {"a": object()})
    assert path.read_text() == "old"


def test_a_file_that_cannot_be_written_is_an_error_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(TorchfabError) as caught:
        atomic.write_json(tmp_path / "gone" / "state.json", {})
    assert str(caught.value) == (
        f"cannot write {tmp_path}/gone/state.json: No such file or directory\n"
        "  fix: free disk space, or check permissions, or set torchfab.records"
    )

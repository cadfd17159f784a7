"""The context of a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchfab.core.errors import UsageError
from torchfab.launching.context import identities


def test_private_keys_are_a_list_or_a_single_path(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch()
    assert identities([str(key)]) == identities(str(key)) == (str(key),)
    assert identities(None) == ()
    with pytest.raises(UsageError, match="no-key: there is no such file"):
        identities(str(tmp_path / "no-key"))

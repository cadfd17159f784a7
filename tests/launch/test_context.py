"""What a command reads of the world."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchfab.core.errors import UsageError
from torchfab.launch.context import identities


def test_keys_are_a_list_as_fab_i_gives_it_or_one_as_files_of_settings_have_it(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch()
    assert identities([str(key)]) == identities(str(key)) == (str(key),)
    assert identities(None) == ()
    with pytest.raises(UsageError, match="no-key: there is no such file"):
        identities(str(tmp_path / "no-key"))

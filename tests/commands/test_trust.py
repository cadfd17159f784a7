"""What `fab trust` makes of the keys that hosts show."""

from __future__ import annotations

from pathlib import Path

import paramiko
import pytest

from torchfab.commands import trust
from torchfab.commands.trust import ShownKey
from torchfab.transport.ssh.host_keys import Rules
from torchfab.transport.ssh.known_hosts import Verdict


def new_host(name: str, *files: str) -> ShownKey:
    return ShownKey(name, Rules(name, user_files=files), paramiko.ECDSAKey.generate(), Verdict("new"))


def test_key_of_a_host_without_known_hosts_file_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    problems = trust.confirm([new_host("a"), new_host("b", str(tmp_path / "known"))], yes=True, as_json=True)
    assert [path.name for path in tmp_path.iterdir()] == ["known"]
    assert (tmp_path / "known").read_text().startswith("b ")
    assert list(problems) == ["a"]
    assert "UserKnownHostsFile none" in problems["a"].fix

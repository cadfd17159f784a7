"""Versions of tmux, the messages to it, and that tmux accepts them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.remote.place import wait_for
from tests.support import require
from torchfab.remote import tmux

LIMIT = 16_343  # bytes of a message, as tmux 3.3a counts them


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require("tmux")
    folder = tmp_path / "t"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("TMUX_TMPDIR", str(folder))
    monkeypatch.delenv("TMUX", raising=False)


@pytest.mark.parametrize(("windows", "messages"), [(1, 1), (8, 1), (300, 3)])
def test_windows_are_opened_in_as_few_messages_as_possible(windows: int, messages: int) -> None:
    argv = ["/usr/bin/python3", "-I", "-S", "/home/a/.torchfab/jobs/x/node-0/node.py", "supervise"]
    sent = tmux._messages("a", [(f"rank-{rank}", [*argv, f"rank-{rank}"]) for rank in range(windows)])
    assert [args[0] for args in sent] == ["new-session", *["new-window"] * (len(sent) - 1)]
    assert sum(args.count("-n") for args in sent) == windows
    assert all(sum(len(os.fsencode(arg)) + 1 for arg in args) < LIMIT for args in sent)
    assert len(sent) >= messages


def test_processes_that_end_at_once_do_not_prevent_others_from_starting(own_server: None, tmp_path: Path) -> None:
    windows = [(f"rank-{rank}", ["touch", str(tmp_path / str(rank))]) for rank in range(40)]
    assert tmux.open_session("a", windows, 20) == ""
    wait_for(lambda: all((tmp_path / str(rank)).exists() for rank in range(40)))


VERSIONS = {
    "tmux 3.2": (3, 2),
    "tmux 3.5a": (3, 5),
    "tmux next-3.4": (3, 4),
    "tmux master": (99, 0),
    "tmux 10.0": (10, 0),
}


@pytest.mark.parametrize(("text", "version"), VERSIONS.items())
def test_versions_of_tmux_are_parsed(fake_tmux: Callable[[str], None], text: str, version: tuple[int, int]) -> None:
    fake_tmux(text)
    assert tmux.version() == version


# What a user's own file may hold, for tmux servers of the user's own.
FILES = {
    "sessions end without a client": "set -g destroy-unattached on\nset -g exit-unattached on\n",
    "a hook ends the server": "set-hook -g session-created 'kill-server'\n",
    "it waits": "run-shell 'sleep 35'\n",
    "the server stays": "set -g exit-empty off\nset -g remain-on-exit on\nnew-session -d -s mine\n",
}


@pytest.mark.parametrize("text", FILES.values(), ids=list(FILES))
def test_a_users_configuration_has_no_effect(
    own_server: None, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmux").mkdir()
    for path in (tmp_path / ".tmux.conf", tmp_path / "tmux" / "tmux.conf"):
        path.write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    begun = time.monotonic()
    assert tmux.open_session("a", [("rank-0", ["sleep", "600"])], 20) == ""
    assert tmux.run("list-sessions", "-F", "#{session_name}") == (0, "a")
    assert time.monotonic() - begun < 20
    tmux.close_session("a")
    assert wait_for(lambda: not os.path.exists(tmux._socket()))

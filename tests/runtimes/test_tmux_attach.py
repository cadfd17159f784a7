"""The command that opens a terminal on a job's tmux session, in a real terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.records.factories import SETTINGS, plan_named, write
from tests.support import require
from torchfab.core.specs import Node, session_name
from torchfab.records import Record, Records
from torchfab.remote import tmux
from torchfab.runtimes import tmux_attach


def record_with(tmp_path: Path, conf: str) -> Record:
    written = write(Records(tmp_path / "records"), plan_named())
    return replace(written, settings=replace(SETTINGS, tmux_conf=conf))


def shown(argv: tuple[str, ...], text: str) -> str:
    """Run a command in a terminal until it shows a text, then hang up; return what it showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(argv[0], argv, {**os.environ, "TERM": "xterm", "TMUX": "/a/socket,1,0"})
    output, deadline = "", time.monotonic() + 20
    try:
        while text not in output and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                output += os.read(terminal, 65536).decode(errors="replace")
    except OSError:  # it has ended
        pass
    os.close(terminal)
    os.waitpid(pid, 0)
    return output


@pytest.mark.parametrize("is_local", [True, False])
def test_attach_takes_the_users_keys_and_no_option_that_ends_a_job(
    is_local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("tmux")
    home = tmp_path / "it's home"
    home.mkdir()
    (home / "my tmux.conf").write_text(
        "set -g prefix C-a\nset -g destroy-unattached on\nset -g exit-empty off\nset -g status-left '<<mine>>'\n"
    )
    (tmp_path / "t").mkdir(mode=0o700)
    monkeypatch.setenv("TMUX_TMPDIR", str(tmp_path / "t"))
    monkeypatch.setenv("HOME", str(home))
    record = record_with(tmp_path, "~/my tmux.conf")
    node = Node(0, "localhost" if is_local else "node1")
    session = session_name(record.name, node.rank)
    assert tmux.open_session(session, [("rank-0", ["sleep", "600"])], 20) == ""
    try:
        argv = tmux_attach.attach_argv(record, node, "rank-0")
        words = argv if is_local else ("sh", "-c", argv[-1])
        assert "<<mine>>" in shown(words, "<<mine>>")
        time.sleep(0.5)
        assert tmux.has_session(session)
        assert tmux.run("show-options", "-gv", "prefix") == (0, "C-a")
        assert tmux.run("show-options", "-sv", "exit-empty") == (0, "on")
    finally:
        tmux.close_session(session)


def test_without_the_setting_no_file_is_read(tmp_path: Path) -> None:
    record = record_with(tmp_path, "")
    argv = tmux_attach.attach_argv(record, record.nodes[0], "")
    assert argv[-1] == "exec env -u TMUX tmux -L torchfab -f /dev/null attach-session -t =gpt2-node0:"
    assert subprocess.run(["sh", "-n", "-c", argv[-1]], check=False).returncode == 0

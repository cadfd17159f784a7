"""Results on stdout; errors on stderr, with the hosts of equal reasons together."""

from __future__ import annotations

import os

import pytest

from torchfab.core import console
from torchfab.core.errors import HostError, HostsFailedError, UsageError


def test_an_error_is_printed_with_its_fix(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_error(UsageError("--port is 1 to 65535, got 0", "leave it out"))
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "error: --port is 1 to 65535, got 0\n  fix: leave it out\n")


def test_hosts_that_fail_alike_share_a_paragraph() -> None:
    reasons = {
        **{
            f"node{index}": HostError(f"node{index}: refused", "start sshd on 10.0.0.1", "10.0.0.1") for index in (1, 2)
        },
        "node11": HostError("node1: refused"),
        "node3": HostError("node3 has no tmux"),
    }
    assert console.fold_reasons(HostsFailedError("4 of 9 hosts failed", reasons)) == [
        "  node[1-2]: HOST: refused\n      fix: start sshd on ADDRESS",
        "  node11: node1: refused",
        "  node3: node3 has no tmux",
    ]


def test_bytes_that_are_not_utf_8_are_printed_unchanged(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    console.write_out(os.fsdecode(b"caf\xe9"))
    assert capfdbinary.readouterr().out == b"caf\xe9\n"


def test_messages_have_no_control_characters_but_line_ends(capsys: pytest.CaptureFixture[str]) -> None:
    console.write_err("a\x1b[2Jb\nc\x07")
    shown = capsys.readouterr().err
    assert shown.count("\n") == 2
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_progress_is_shown_on_terminals_only(capsys: pytest.CaptureFixture[str]) -> None:
    console.progress("connecting", 1, 2)
    assert capsys.readouterr().err == ""

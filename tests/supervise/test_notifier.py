"""Events are sent to a command or a URL."""

from __future__ import annotations

import json
from pathlib import Path

from tests.remote.place import wait_for
from torchfab.remote import procfs
from torchfab.supervise.notifier import Notifier


def test_delivery_failures_are_reported_by_target(tmp_path: Path) -> None:
    failures: list[str] = []
    for target in ("false", "/no/such/program", "http://127.0.0.1:9/secret"):
        notifier = Notifier(target, failures.append)
        notifier.send({"job": "x", "event": "end"})
        notifier.close()
    assert [text.partition(": ")[0] for text in failures] == [
        *("--notify false", "--notify /no/such/program", "--notify http://127.0.0.1:9"),
    ]


def test_a_command_gets_the_event_on_stdin_and_runs_without_a_shell(tmp_path: Path) -> None:
    failures: list[str] = []
    notifier = Notifier(f"cp /dev/stdin '{tmp_path}/$(id); x'", failures.append)
    notifier.send({"job": "x", "event": "end", "text": "it's over"})
    notifier.close()
    assert failures == []
    assert json.loads((tmp_path / "$(id); x").read_text()) == {"job": "x", "event": "end", "text": "it's over"}


def test_a_command_that_times_out_is_killed_with_its_children(tmp_path: Path) -> None:
    failures: list[str] = []
    program = tmp_path / "slow"
    program.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {tmp_path}/pid\nwait\n")
    program.chmod(0o755)
    timeout_s = 0.2
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):  # on a busy machine it starts late
        failures.clear()
        timeout_s *= 2
        assert timeout_s < 30
        notifier = Notifier(str(program), failures.append, timeout_s=timeout_s)
        notifier.send({"job": "x", "event": "end"})
        notifier.close()
        wait_for(lambda: failures)
    assert f"timed out after {timeout_s} seconds" in failures[0]
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not procfs.is_running(pid))

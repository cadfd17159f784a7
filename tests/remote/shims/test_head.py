"""The program around a launcher that reaches the other nodes, run here exactly as on a node."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.integration.fab import eventually
from tests.remote.shims.programs import ended, run, start, write_nodes


def test_a_head_that_ends_notifies_the_relays_without_a_command(place: Path) -> None:
    (other := place / "other").mkdir()
    shutil.copy(place / "relay.py", other)
    relay = [sys.executable, "-I", "-S", str(other / "relay.py"), "deliver"]
    write_nodes(place, {"a": {"ssh": [], "gate": []}, "b": {"ssh": [], "gate": relay}}, fail_fast=True)
    waiting = subprocess.Popen([*relay[:-1], "await"], stdout=subprocess.PIPE, text=True)
    assert run(place, "head", "sh", "-c", "exit 3")[0] == 3
    assert ended(waiting) == (0, "torchfab: the head ended with 3 before it reached this node\n")


def test_a_head_does_not_notify_relays_that_had_a_command(place: Path) -> None:
    relay = [sys.executable, "-c", "raise SystemExit('again')"]
    write_nodes(place, {"b": {"ssh": [], "gate": relay}})
    (place / "visited-b").touch()
    assert run(place, "head", "true") == (0, "")


def test_a_head_forwards_signals(place: Path) -> None:
    write_nodes(place, {"a": {"ssh": [], "gate": []}})
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(5)); open(sys.argv[1], 'w'); time.sleep(60)"
    process = start(place, "head", sys.executable, "-W", "ignore", "-c", code, str(place / "up"))
    assert eventually((place / "up").exists, 60)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 5

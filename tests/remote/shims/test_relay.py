"""The program that waits on a node for the command of a head, run here exactly as on a node."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.integration.fab import eventually
from tests.remote.shims.programs import ended, run, start


def touch_and_sleep(path: Path) -> str:
    """Return a shell command that makes a file and then runs until a signal ends it."""
    return f"touch '{path}'; exec sleep 60"


def test_a_relay_runs_the_command_in_its_own_environment(place: Path) -> None:
    relay = start(place, "relay", "await", env={"SECRET": "inside"})
    delivered = run(place, "relay", "deliver", 'echo "$SECRET"; exit 7', env={"SECRET": "outside"})
    assert ended(relay) == (7, "inside\n")
    assert delivered == (7, "")


def test_a_relay_runs_only_one_command(place: Path) -> None:
    relay, sender = start(place, "relay", "await"), start(place, "relay", "deliver", touch_and_sleep(place / "runs"))
    assert eventually((place / "runs").exists, 60)
    assert run(place, "relay", "deliver", f"touch '{place}/forbidden'")[0] == 0
    relay.send_signal(signal.SIGTERM)
    assert (ended(relay)[0], ended(sender)[0]) == (143, 143)
    assert not (place / "forbidden").exists()


@pytest.mark.parametrize("how", ["killed", "hung up"])
def test_a_relay_ends_its_command_when_the_sender_has_ended(place: Path, how: str) -> None:
    relay, sender = start(place, "relay", "await"), start(place, "relay", "deliver", touch_and_sleep(place / "runs"))
    assert eventually((place / "runs").exists, 60)
    assert sender.stdout is not None
    if how == "killed":
        sender.kill()
    else:
        sender.stdout.close()
    assert ended(relay) == (1, "torchfab: the head has closed the connection\n")
    sender.wait(60)
    sender.stdout.close()


def test_a_relay_exits_with_the_code_of_the_first_failed_rank(place: Path) -> None:
    ranks = [
        {"pid": 1, "ended": 3.0, "code": 1},
        {"pid": 2, "ended": 2.0, "code": 7},
        {"pid": 3, "ended": 1.0, "code": 0},
        {"pid": 4, "ended": None, "code": None},
    ]
    (place / "ranks.json").write_text(json.dumps(ranks))
    relay = start(place, "relay", "await")
    assert run(place, "relay", "deliver", "true")[0] == 7
    assert ended(relay)[0] == 7

"""What faulthandler writes, parsed; and which processes get its signal."""

from __future__ import annotations

import pytest

from torchfab.remote.stacks import faulthandler as faults


@pytest.mark.parametrize(
    ("state", "caught", "name", "answer"),
    [
        ("S", 1 << 11, "SIGUSR2", faults.ALLOWED),
        ("R", 1 << 9, "SIGUSR1", faults.ALLOWED),
        ("S", 1 << 9, "SIGUSR2", "it does not catch SIGUSR2"),
        ("S", 0, "SIGUSR2", "it does not catch SIGUSR2"),
        ("T", 1 << 11, "SIGUSR2", "in state T it handles no signal"),
        ("D", 1 << 11, "SIGUSR2", "in state D it handles no signal"),
        ("S", 1 << 11, "", "torchfab.stacks_signal is empty"),
    ],
)
def test_the_signal_goes_only_to_processes_that_catch_it_now(state: str, caught: int, name: str, answer: str) -> None:
    assert faults.check_signal(state, caught, name) == answer

"""The offset of a node's clock is taken from the reading with the shortest round trip."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import cast

from torchfab.transport.clock import read_clock
from torchfab.transport.messages.doctor import ClockAnswer, ClockRequest
from torchfab.transport.session import Session

AHEAD_S = 300.0


class DelayedAnswers:
    """A node whose clock is ahead, and whose answers come late by the given times."""

    def __init__(self, *delays_s: float) -> None:
        self.delays_s: Iterator[float] = iter(delays_s)

    def request(self, request: ClockRequest, timeout_s: float) -> ClockAnswer:
        read = time.time() + AHEAD_S
        time.sleep(next(self.delays_s))
        return ClockAnswer(read)


def test_the_shortest_round_trip_counts() -> None:
    clock = read_clock(cast(Session, DelayedAnswers(0.2, 0.02, 0.1)), 5.0, readings=3)
    assert 0.01 <= clock.within_s < 0.1
    assert abs(clock.ahead_s - AHEAD_S) <= clock.within_s + 0.001

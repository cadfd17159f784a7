"""Ctrl-C and the signal of `fab stop` during a launch."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from torchfab.launch.interrupts import STOP_SIGNAL, DeferInterrupts, InterruptibleOnce, StopOnSignal

BOTH = (signal.SIGINT, STOP_SIGNAL)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Restore the handlers that a test has changed."""
    before = {number: signal.getsignal(number) for number in BOTH}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_fab_stop_is_ctrl_c_within_the_block_and_ignored_after_it() -> None:
    with pytest.raises(KeyboardInterrupt), StopOnSignal():
        send(STOP_SIGNAL)
    send(STOP_SIGNAL)


@pytest.mark.parametrize("number", BOTH)
def test_only_the_first_interrupt_counts_so_that_a_rollback_finishes(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    signal.signal(STOP_SIGNAL, signal.default_int_handler)
    before = [signal.getsignal(each) for each in BOTH]
    interrupted = 0
    with InterruptibleOnce():
        try:
            send(number)
        except KeyboardInterrupt:
            interrupted += 1
        for again in BOTH:
            send(again)
    assert interrupted == 1
    assert "taking back what was started" in capsys.readouterr().err
    assert [signal.getsignal(each) for each in BOTH] == before


@pytest.mark.parametrize("number", BOTH)
def test_an_interrupt_is_deferred_to_the_end_of_the_block(number: int) -> None:
    done = []

    def record() -> None:
        with DeferInterrupts():
            send(number)
            done.append("recorded")

    with pytest.raises(KeyboardInterrupt):
        record()
    assert done == ["recorded"]


def test_without_an_interrupt_nothing_is_raised() -> None:
    before = signal.getsignal(signal.SIGINT)
    with DeferInterrupts():
        pass
    assert signal.getsignal(signal.SIGINT) is before

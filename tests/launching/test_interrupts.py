"""Ctrl-C and the signal of `fab stop` during a launch."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from torchfab.launching.interrupts import STOP_SIGNAL, DeferInterrupts, InterruptibleOnce, StopOnSignal

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


def test_the_stop_signal_interrupts_the_block_and_is_ignored_afterwards() -> None:
    with pytest.raises(KeyboardInterrupt), StopOnSignal():
        send(STOP_SIGNAL)
    send(STOP_SIGNAL)


@pytest.mark.parametrize("number", BOTH)
def test_interrupts_after_the_first_are_ignored(number: int, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert "rolling back the launch" in capsys.readouterr().err
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


def test_a_handler_of_the_programs_own_is_back_after_the_launch() -> None:
    received = []
    signal.signal(STOP_SIGNAL, lambda number, _: received.append(number))
    with StopOnSignal():
        pass
    send(STOP_SIGNAL)
    assert received == [STOP_SIGNAL]


def test_in_another_thread_handlers_are_left_alone() -> None:
    before = [signal.getsignal(each) for each in BOTH]
    seen: list[object] = []

    def launch() -> None:
        with StopOnSignal(), InterruptibleOnce(), DeferInterrupts():
            seen.extend(signal.getsignal(each) for each in BOTH)

    thread = threading.Thread(target=launch)
    thread.start()
    thread.join()
    assert seen == before

"""Deadlines: each call at its time, unless it was cancelled; one thread for all."""

from __future__ import annotations

import queue
import threading
import time

from torchfab.transport import timers


def test_calls_are_made_in_the_order_of_their_times() -> None:
    made: queue.SimpleQueue[str] = queue.SimpleQueue()
    begun = time.monotonic()
    timers.after(0.4, lambda: made.put("late"))
    timers.after(0.1, lambda: made.put("early"))
    assert [made.get(timeout=10), made.get(timeout=10)] == ["early", "late"]
    assert time.monotonic() - begun >= 0.4


def test_what_is_cancelled_is_not_called_and_delays_no_other() -> None:
    made: queue.SimpleQueue[str] = queue.SimpleQueue()
    timers.after(0.05, lambda: made.put("cancelled")).cancel()
    timers.after(0.1, lambda: made.put("kept"))
    assert made.get(timeout=10) == "kept"
    assert made.empty()


def test_a_call_that_takes_long_delays_no_other() -> None:
    release, made = threading.Event(), threading.Event()
    timers.after(0.01, lambda: release.wait(20))
    timers.after(0.05, made.set)
    assert made.wait(10)
    release.set()


def test_a_call_can_be_cancelled_after_it_was_made_and_is_made_once() -> None:
    calls: list[int] = []
    made = threading.Event()

    def act() -> None:
        calls.append(1)
        made.set()

    deadline = timers.after(0.01, act)
    assert made.wait(10)
    deadline.cancel()
    deadline.fire()
    time.sleep(0.05)
    assert calls == [1]


def test_a_thousand_of_them_are_one_thread() -> None:
    timers.after(60, lambda: None).cancel()
    before = threading.active_count()
    waiting = [timers.after(60, lambda: None) for _ in range(1000)]
    assert threading.active_count() <= before
    for each in waiting:
        each.cancel()

"""Timers: each call at its time, unless it is cancelled; one thread for all."""

from __future__ import annotations

import queue
import threading
import time

from torchfab.transport import timers


def test_calls_are_made_in_the_order_of_their_times() -> None:
    made: queue.SimpleQueue[str] = queue.SimpleQueue()
    started = time.monotonic()
    timers.after(0.4, lambda: made.put("late"))
    timers.after(0.1, lambda: made.put("early"))
    assert [made.get(timeout=60), made.get(timeout=60)] == ["early", "late"]
    assert time.monotonic() - started >= 0.4


def test_a_cancelled_call_is_not_made() -> None:
    made: queue.SimpleQueue[str] = queue.SimpleQueue()
    timers.after(0.05, lambda: made.put("cancelled")).cancel()
    timers.after(0.1, lambda: made.put("kept"))
    assert made.get(timeout=60) == "kept"
    assert made.empty()


def test_a_long_call_does_not_delay_others() -> None:
    release, made = threading.Event(), threading.Event()
    timers.after(0.01, lambda: release.wait(60))
    timers.after(0.05, made.set)
    assert made.wait(60)
    release.set()


def test_a_call_is_made_once_and_can_be_cancelled_later() -> None:
    calls: list[int] = []
    made = threading.Event()

    def act() -> None:
        calls.append(1)
        made.set()

    timer = timers.after(0.01, act)
    assert made.wait(60)
    timer.cancel()
    timer.fire()
    time.sleep(0.05)
    assert calls == [1]


def test_a_thousand_timers_use_one_thread() -> None:
    timers.after(60, lambda: None).cancel()
    before = threading.active_count()
    waiting = [timers.after(60, lambda: None) for _ in range(1000)]
    assert threading.active_count() <= before
    for each in waiting:
        each.cancel()

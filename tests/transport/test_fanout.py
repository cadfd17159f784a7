"""Parallel calls for many hosts."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.remote.place import wait_for
from torchfab.transport import fanout
from torchfab.transport.fanout import fan_out


class Counter:
    """Counts the threads that are in the block at the same time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = 0

    def __enter__(self) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.now -= 1


@given(st.lists(st.integers(-5, 5), max_size=30), st.integers(1, 8))
def test_every_item_has_one_result_or_exception(items: list[int], limit: int) -> None:
    found = [
        (item, type(got) if isinstance(got, Exception) else got)
        for item, got in fan_out(items, lambda x: 10 // x, limit)
    ]
    expected = [(item, 10 // item if item else ZeroDivisionError) for item in items]
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_a_slow_item_does_not_delay_others() -> None:
    release = threading.Event()
    results = fan_out(["slow", "a", "b"], lambda item: release.wait(60) if item == "slow" else item, 2)
    assert {next(results), next(results)} == {("a", "a"), ("b", "b")}
    release.set()
    assert next(results) == ("slow", True)


def test_items_that_block_all_threads_do_not_delay_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "STUCK_S", 0.05)
    release = threading.Event()
    items = ["slow", "slower", "a", "b"]
    results = fan_out(items, lambda item: release.wait(60) if item.startswith("slow") else item, 2)
    assert {next(results), next(results)} == {("a", "a"), ("b", "b")}
    release.set()
    assert {next(results), next(results)} == {("slow", True), ("slower", True)}


@pytest.mark.parametrize("limit", [1, 3])
def test_at_most_the_limit_run_at_the_same_time(limit: int) -> None:
    counter = Counter()

    def act(_: int) -> None:
        with counter:
            time.sleep(0.01)

    assert len(list(fan_out(range(12), act, limit))) == 12
    assert counter.most <= limit


def test_slow_items_with_progress_get_no_further_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Further threads would make each item slower if a shared resource is the bottleneck."""
    monkeypatch.setattr(fanout, "STUCK_S", 0.3)
    longest_s = 1.0
    while longest_s > 0.25:  # a busy machine has kept the threads waiting: they were stuck
        counter, times = Counter(), [time.monotonic()]

        def act(_: int, counter: Counter = counter, times: list[float] = times) -> None:
            with counter:
                for _ in range(4):
                    time.sleep(0.1)
                    fanout.report_progress()
                    times.append(time.monotonic())

        assert len(list(fan_out(range(4), act, 2))) == 4
        longest_s = max(later - earlier for earlier, later in pairwise(sorted(times)))
    assert counter.most == 2


def test_threads_that_were_stuck_exit_when_they_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "STUCK_S", 1.0)
    release, counter = threading.Event(), Counter()

    def act(item: int) -> None:
        if item < 2:
            release.wait(60)
            return
        with counter:
            release.set()  # the first of the further threads releases the stuck ones
            time.sleep(0.01)

    assert len(list(fan_out(range(40), act, 2))) == 40
    assert counter.most == 2


def test_silent_items_get_at_most_four_times_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "STUCK_S", 0.02)
    release, counter, counted = threading.Event(), Counter(), []

    def act(_: int) -> None:
        with counter:
            release.wait(60)

    def measure() -> None:
        wait_for(lambda: counter.most >= 8)
        time.sleep(0.2)  # ten times STUCK_S
        counted.append(counter.most)
        release.set()

    watcher = threading.Thread(target=measure)
    watcher.start()
    assert len(list(fan_out(range(20), act, 2))) == 20
    watcher.join()
    assert counted == [8]


def test_pending_items_are_discarded_when_the_caller_stops() -> None:
    started: list[int] = []
    release = threading.Event()

    def act(item: int) -> None:
        started.append(item)
        if item:
            release.wait(60)

    results = fan_out(range(10), act, 2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    release.set()
    time.sleep(0.1)
    assert len(started) <= 3


def test_no_items_give_no_results() -> None:
    assert list(fan_out([], str, 4)) == []

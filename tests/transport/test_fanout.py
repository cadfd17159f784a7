"""One thing for many hosts at once."""

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


class Crowd:
    """Counts how many are in it at once."""

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
def test_every_item_comes_back_once_with_its_result_or_its_exception(items: list[int], limit: int) -> None:
    found = [
        (item, type(got) if isinstance(got, Exception) else got)
        for item, got in fan_out(items, lambda x: 10 // x, limit)
    ]
    wanted = [(item, 10 // item if item else ZeroDivisionError) for item in items]
    assert sorted(found, key=str) == sorted(wanted, key=str)


def test_a_slow_item_delays_no_other() -> None:
    release = threading.Event()
    results = fan_out(["slow", "a", "b"], lambda item: release.wait(20) if item == "slow" else item, 2)
    assert {next(results), next(results)} == {("a", "a"), ("b", "b")}
    release.set()
    assert next(results) == ("slow", True)


def test_items_that_keep_all_threads_busy_delay_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "STUCK_S", 0.05)
    release = threading.Event()
    items = ["slow", "slower", "a", "b"]
    results = fan_out(items, lambda item: release.wait(20) if item.startswith("slow") else item, 2)
    assert {next(results), next(results)} == {("a", "a"), ("b", "b")}
    release.set()
    assert {next(results), next(results)} == {("slow", True), ("slower", True)}


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_than_the_limit_are_at_work(limit: int) -> None:
    crowd = Crowd()

    def act(_: int) -> None:
        with crowd:
            time.sleep(0.01)

    assert len(list(fan_out(range(12), act, limit))) == 12
    assert crowd.most <= limit


def test_who_is_slow_and_gets_on_is_not_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """More at once would make each slower still, where what they share is what makes them slow."""
    monkeypatch.setattr(fanout, "STUCK_S", 0.3)
    longest_s = 1.0
    while longest_s > 0.25:  # a busy machine has kept the threads waiting: they were stuck
        crowd, times = Crowd(), [time.monotonic()]

        def act(_: int, crowd: Crowd = crowd, times: list[float] = times) -> None:
            with crowd:
                for _ in range(4):
                    time.sleep(0.1)
                    fanout.report_progress()
                    times.append(time.monotonic())

        assert len(list(fan_out(range(4), act, 2))) == 4
        longest_s = max(later - earlier for earlier, later in pairwise(sorted(times)))
    assert crowd.most == 2


def test_those_that_were_stuck_are_not_added_to_the_others_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "STUCK_S", 1.0)
    release, crowd = threading.Event(), Crowd()

    def act(item: int) -> None:
        if item < 2:
            release.wait(20)
            return
        with crowd:
            release.set()  # the first of those that take over lets the stuck ones go on
            time.sleep(0.01)

    assert len(list(fan_out(range(40), act, 2))) == 40
    assert crowd.most == 2


def test_many_silent_ones_take_four_times_the_threads_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "STUCK_S", 0.02)
    release, crowd, seen = threading.Event(), Crowd(), []

    def act(_: int) -> None:
        with crowd:
            release.wait(20)

    def let_go() -> None:
        wait_for(lambda: crowd.most >= 8)
        time.sleep(0.2)  # ten times STUCK_S
        seen.append(crowd.most)
        release.set()

    watcher = threading.Thread(target=let_go)
    watcher.start()
    assert len(list(fan_out(range(20), act, 2))) == 20
    watcher.join()
    assert seen == [8]


def test_when_the_caller_has_gone_nobody_begins_with_the_rest() -> None:
    begun: list[int] = []
    release = threading.Event()

    def act(item: int) -> None:
        begun.append(item)
        if item:
            release.wait(20)

    results = fan_out(range(10), act, 2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    release.set()
    time.sleep(0.1)
    assert len(begun) <= 3


def test_nothing_to_do_is_done() -> None:
    assert list(fan_out([], str, 4)) == []

"""One thing for many hosts at once."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchfab import fanout
from torchfab.fanout import fan_out


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
    lock, now, most = threading.Lock(), [0], [0]

    def act(_: int) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.01)
        with lock:
            now[0] -= 1

    assert len(list(fan_out(range(12), act, limit))) == 12
    assert most[0] <= limit


def test_nothing_to_do_is_done() -> None:
    assert list(fan_out([], str, 4)) == []

"""Tracebacks are found in the whole log of a pod: in its begin, its middle and its end, in bounded memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.kube.api import stamp
from tests.why.test_tracebacks import PLAIN
from torchfab.runtimes.kubernetes import log_search
from torchfab.runtimes.kubernetes.log_search import find_tracebacks
from torchfab.why.tracebacks import all_tracebacks

BEGUN = 1_700_000_000.0
STEP = "[rank0]:INFO step 17 loss 2.31 tokens/s 10234"


class PodLog:
    """A log of one line a second, as the cluster gives it, in blocks of some bytes."""

    def __init__(self, texts: Iterable[str], block: int = 65536) -> None:
        self.lines = [
            (BEGUN + number, f"{stamp(BEGUN + number, fraction=True)} {text}\n".encode())
            for number, text in enumerate(texts)
        ]
        self.block, self.asked = block, list[dict[str, Any]]()

    def __call__(self, **query: Any) -> Iterator[bytes]:
        """Open it."""
        self.asked.append(query)
        since = datetime.fromisoformat(query["sinceTime"]).timestamp() if "sinceTime" in query else 0.0
        content = b"".join(line for when, line in self.lines if when >= since)[: query["limitBytes"]]
        return (content[at : at + self.block] for at in range(0, len(content), self.block))


def with_traceback_at(at: int, count: int) -> list[str]:
    """Return lines of a training, with a traceback after some of them."""
    return [STEP] * at + [f"[rank0]:{line}" for line in PLAIN.splitlines()] + [STEP] * (count - at)


def names_of(windows: Iterable[bytes]) -> list[str]:
    """Return the exceptions in what was found."""
    plain = b"".join(windows).decode().replace("[rank0]:", "")
    return [each.exception for each in all_tracebacks("\n".join(line.partition(" ")[2] for line in plain.splitlines()))]


@pytest.mark.parametrize("block", [7, 100, 65536])
@pytest.mark.parametrize("at", [0, 1, 700, 1999])
def test_traceback_is_found_anywhere(at: int, block: int) -> None:
    log = PodLog(with_traceback_at(at, 2000), block)
    windows = find_tracebacks(log, BEGUN + 1e6)
    assert names_of(windows) == ["ValueError: bad batch 17"]
    assert sum(map(len, windows)) < 300 * 100
    assert log.asked == [{"limitBytes": log_search.PART_BYTES}]


@pytest.mark.parametrize(("at", "is_found"), [(10, True), (1000, True), (1950, True), (600, False)])
def test_begin_middle_and_end_of_a_longer_log_are_searched(
    at: int, is_found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part is here 300 of 2000 lines."""
    monkeypatch.setattr(log_search, "_LONGEST_LINE", 200)
    log = PodLog(with_traceback_at(at, 2000), 1000)
    monkeypatch.setattr(log_search, "PART_BYTES", 300 * len(log.lines[0][1]))
    windows = find_tracebacks(log, BEGUN + 2000)
    assert names_of(windows) == ["ValueError: bad batch 17"] * is_found
    assert len(log.asked) == 3


def test_lines_that_are_read_anyway_are_not_searched() -> None:
    log = PodLog(with_traceback_at(1900, 2000), 1000)
    assert find_tracebacks(log, BEGUN + 100) == []


def test_first_and_last_of_many_tracebacks_are_kept_in_bounded_memory() -> None:
    numbered = [
        f"[rank0]:{line.replace('batch 17', f'batch {number}')}"
        for number in range(300)
        for line in [*PLAIN.splitlines(), *([f"INFO {17 * 'step '}"] * 300)]
    ]
    log = PodLog(numbered)
    content = b"".join(line for _, line in log.lines)
    tracemalloc.start()
    windows = find_tracebacks(lambda **_: (content[at : at + 65536] for at in range(0, len(content), 65536)), 9e9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = [*range(4), *range(288, 300)]
    assert names_of(windows) == [f"ValueError: bad batch {number}" for number in kept]
    assert peak < 8 * 1024 * 1024 < len(content)


def test_search_ends_when_its_time_is_over() -> None:
    log = PodLog(with_traceback_at(1900, 2000), 1000)
    assert find_tracebacks(log, BEGUN + 1e6, search_s=-1.0) == []
    assert len(log.asked) == 1

"""Shares of a rank's time, and who comes last."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.profiling.factories import ranked
from torchfab.profiling.summary import latest, shares


def test_shares_without_overlap_add_up_to_one() -> None:
    times = replace(
        ranked(0), compute=((0.0, 400e3),), communication=((300e3, 600e3),), data=((550e3, 700e3),), end=1e6
    )
    found = shares(times)
    parts = [found.compute, found.communication, found.exposed, found.data, found.idle]
    assert parts == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.3])
    assert found.compute + found.exposed + found.data + found.idle == pytest.approx(1)


def test_the_rank_that_comes_last_most_often_is_named() -> None:
    first = ranked(0, (1, 0, 30), (2, 40, 60), (3, 90, 95))
    second = ranked(1, (1, 20, 30), (2, 52, 61), (3, 80, 95))
    (found,) = latest([first, second])
    assert (found.group, found.operation, found.count, found.rank, found.last) == ("0", "all_reduce", 3, 1, 2)
    assert (found.ms, found.late_ms) == (21, 16)


def test_a_rank_by_itself_is_never_late() -> None:
    assert latest([ranked(0, (1, 0, 30))]) == []

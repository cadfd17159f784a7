"""Sets of intervals, compared with sets of whole numbers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from torchfab.profiling.intervals import Interval, clip, subtract, total, union

INTERVALS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted).map(tuple), max_size=8)


def points(intervals: list[Interval]) -> set[int]:
    """Return the whole numbers at which parts of length 1 begin."""
    return {at for begin, end in intervals for at in range(int(begin), int(end))}


def check_form(found: list[Interval]) -> None:
    """Check that intervals are disjoint, not empty, and in rising order."""
    assert all(begin < end for begin, end in found)
    assert all(first[1] <= second[0] for first, second in pairwise(found))


@given(INTERVALS, INTERVALS)
def test_they_are_what_sets_of_points_are(first: list[Interval], second: list[Interval]) -> None:
    one, other = union(first), union(second)
    left = subtract(one, other)
    check_form(one)
    check_form(left)
    assert points(one) == points(first)
    assert points(left) == points(first) - points(second)
    assert total(one) == len(points(first))
    assert points(clip(one, 5, 9)) == points(first) & set(range(5, 9))

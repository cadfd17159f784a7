"""Sets of times as lists of disjoint intervals in rising order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

Interval: TypeAlias = tuple[float, float]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the union of intervals.

    Parameters
    ----------
    intervals : iterable of (float, float)
        In any order; they may overlap.

    Returns
    -------
    list of (float, float)
        Disjoint, in rising order.
    """
    found: list[Interval] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        elif end > begin:
            found.append((begin, end))
    return found


def subtract(intervals: Sequence[Interval], removed: Sequence[Interval]) -> list[Interval]:
    """Return what is in one set and not in another.

    Parameters
    ----------
    intervals, removed : sequence of (float, float)
        As `union` returns them.

    Returns
    -------
    list of (float, float)
        Disjoint, in rising order.
    """
    found, first = [], 0
    for begin, end in intervals:
        while first < len(removed) and removed[first][1] <= begin:
            first += 1
        left, at = begin, first
        while at < len(removed) and removed[at][0] < end:
            if removed[at][0] > left:
                found.append((left, removed[at][0]))
            left = removed[at][1]
            at += 1
        if end > left:
            found.append((left, end))
    return found


def clip(intervals: Iterable[Interval], begin: float, end: float) -> list[Interval]:
    """Return the parts of intervals within a window.

    Parameters
    ----------
    intervals : iterable of (float, float)
        The intervals.
    begin, end : float
        The window.

    Returns
    -------
    list of (float, float)
    """
    clipped = ((max(begin, each[0]), min(end, each[1])) for each in intervals)
    return [each for each in clipped if each[1] > each[0]]


def total(intervals: Iterable[Interval]) -> float:
    """Return the length of disjoint intervals, together.

    Parameters
    ----------
    intervals : iterable of (float, float)
        As `union` returns them.

    Returns
    -------
    float
    """
    return sum(end - begin for begin, end in intervals)

"""Collectives of ranks for tests: generated, with one fault or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torchfab.collectives.model import Call, CodeLine, Group, RankHistory, Snapshot, Tensors

WORLD = "0"


def tensors(*size: int, of: str = "float32") -> Tensors:
    """Return one tensor."""
    return Tensors((size,), (of,))


def line(number: int, function: str = "<module>") -> CodeLine:
    """Return a line of the training script."""
    return CodeLine(function, "/home/me/train.py", number)


def call(
    number: int, operation: str = "all_reduce", group: str = WORLD, waits_s: float | None = None, at: int = 30
) -> Call:
    """Return a call, which waits or has ended."""
    ended = waits_s is None
    return Call(group, number, operation, tensors(4), tensors(4), ended, waits_s or 0.0, line(at))


def rank(number: int, calls: Iterable[Call], groups: Iterable[Group], at: CodeLine | None = None) -> RankHistory:
    """Return a rank with its calls."""
    return RankHistory(number, f"node{number}", tuple(groups), tuple(calls), at)


def world(size: int) -> Group:
    """Return the group of all ranks."""
    return Group(WORLD, "default_pg", tuple(range(size)))


def snapshot(ranks: Mapping[int, RankHistory]) -> Snapshot:
    """Return the snapshot of some ranks."""
    return Snapshot(ranks)


def waiting(history: RankHistory, number: int, age_s: float, group: str = WORLD) -> RankHistory:
    """Return a rank whose call of one number has not ended, and that has called nothing after it in that group."""
    kept = [each for each in history.calls if each.group != group or each.number <= number]
    calls = [
        replace(each, has_ended=False, age_s=age_s) if (each.group, each.number) == (group, number) else each
        for each in kept
    ]
    return replace(history, calls=tuple(calls))

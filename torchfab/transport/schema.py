"""Shapes of values that came as JSON: whether one is of a shape, and its texts without what steers a terminal.

A shape is a type, a `Span` of numbers, a set of texts, a pattern of texts, or a function that says yes; a tuple of
shapes, of which one must fit; a list with the shape of its items, or a `Row` with one for each; or a dict of names with
their shapes, of which those with a `?` may be missing, and `*` stands for all others. What a dict does not name may be
anything, but in an `Only` there may be nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torchfab.core.log_lines import strip_controls


class Span(NamedTuple):
    """Numbers from `low` to `high`; whole ones alone where `kind` is int. What is not finite is in no span."""

    low: float
    high: float
    kind: Any = (int, float)


class Row(tuple[Any, ...]):
    """The shapes of a list's items, one for each."""

    __slots__ = ()


class Only(dict[str, Any]):
    """The shapes of a dict that has these names, and no others."""


Judge = Callable[[Any], bool]


def fits(value: Any, shape: Any) -> bool:
    """Say whether a value is of a shape."""
    return judge(shape)(value)


def judge(shape: Any) -> Judge:
    """Return what says whether a value is of a shape: made once for many values, it takes a third of the time."""
    make = _JUDGES.get(type(shape))
    if make is not None:
        return make(shape)
    if isinstance(shape, type):
        return _of_type(shape)
    return lambda value: bool(shape(value))


def _of_type(kind: type) -> Judge:
    if issubclass(bool, kind) and kind is not bool:  # to Python, True is a number
        return lambda value: isinstance(value, kind) and not isinstance(value, bool)
    return lambda value: isinstance(value, kind)


def _of_dict(shape: Mapping[str, Any]) -> Judge:
    named = [(name.removesuffix("?"), name.endswith("?"), judge(each)) for name, each in shape.items() if name != "*"]
    others = judge(shape["*"]) if "*" in shape else None

    def is_dict(value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        if not all(fit(value[name]) if name in value else may_be_missing for name, may_be_missing, fit in named):
            return False
        return others is None or all(others(value[name]) for name in _others(value, shape))

    return is_dict


def _of_only(shape: Only) -> Judge:
    is_dict = _of_dict(shape)
    return lambda value: is_dict(value) and not _others(value, shape)


def _others(value: Mapping[str, Any], shape: Mapping[str, Any]) -> list[str]:
    return [name for name in value if name not in shape and f"{name}?" not in shape]


def _of_list(shape: Sequence[Any]) -> Judge:
    fit = judge(shape[0])
    return lambda value: isinstance(value, list) and all(map(fit, value))


def _of_row(shapes: Row) -> Judge:
    judges = tuple(map(judge, shapes))

    def is_row(value: Any) -> bool:
        if not isinstance(value, list) or len(value) != len(judges):
            return False
        for fit, each in zip(judges, value, strict=False):  # noqa: SIM110 (a generator takes twice the time)
            if not fit(each):
                return False
        return True

    return is_row


def _of_any(shapes: tuple[Any, ...]) -> Judge:
    judges = tuple(map(judge, shapes))

    def is_one(value: Any) -> bool:
        for fit in judges:  # noqa: SIM110 (the same)
            if fit(value):
                return True
        return False

    return is_one


def _of_span(span: Span) -> Judge:
    low, high, kind = span
    kinds = frozenset(kind if isinstance(kind, tuple) else (kind,))  # exact: to Python, True is a number
    return lambda value: type(value) in kinds and low <= value <= high


_JUDGES: Mapping[Any, Callable[[Any], Judge]] = {
    dict: _of_dict,
    Only: _of_only,
    list: _of_list,
    Row: _of_row,
    tuple: _of_any,
    frozenset: lambda words: lambda value: isinstance(value, str) and value in words,
    re.Pattern: lambda pattern: lambda value: isinstance(value, str) and bool(pattern.fullmatch(value)),
    Span: _of_span,
}


def is_clean(text: bytes) -> bool:
    """Say whether JSON holds nothing that `cleaned` could take away: it is printable ASCII, and escapes nothing."""
    return b"\\" not in text and text.isascii() and text.decode().isprintable()


def cleaned(value: Any) -> Any:
    """Return a value whose texts steer no terminal: without escape sequences and control characters but line ends."""
    if isinstance(value, str):
        return value if value.isprintable() else "\n".join(map(strip_controls, value.split("\n")))
    if isinstance(value, list):
        return [cleaned(each) for each in value]
    return {cleaned(name): cleaned(each) for name, each in value.items()} if isinstance(value, dict) else value

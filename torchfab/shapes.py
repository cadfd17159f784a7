"""Shapes of values that came as JSON: whether one is of a shape, and its texts without what steers a terminal.

A shape is a type, a `Span` of numbers, a set of texts, a pattern of texts, or a function that says yes; a tuple of
shapes, of which one must fit; a list with the shape of its items, or a `Row` with one for each; or a dict of names with
their shapes, of which those with a `?` may be missing, and `*` stands for all others. What a dict does not name may be
anything, but in an `Only` there may be nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torchfab.logview import clean


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


def fits(value: Any, shape: Any) -> bool:
    """Say whether a value is of a shape."""
    judge = _KINDS.get(type(shape))
    if judge is not None:
        return judge(value, shape)
    if isinstance(shape, type):
        return isinstance(value, shape) and (shape is bool or not isinstance(value, bool))
    return bool(shape(value))


def _is_dict(value: Any, shape: Mapping[str, Any]) -> bool:
    if not isinstance(value, dict):
        return False
    named = all(_has(value, name, each) for name, each in shape.items() if name != "*")
    return named and ("*" not in shape or all(fits(value[name], shape["*"]) for name in _others(value, shape)))


def _has(value: Mapping[str, Any], name: str, shape: Any) -> bool:
    key = name.removesuffix("?")
    return fits(value[key], shape) if key in value else name.endswith("?")


def _others(value: Mapping[str, Any], shape: Mapping[str, Any]) -> list[str]:
    return [name for name in value if name not in shape and f"{name}?" not in shape]


def _is_number(value: Any, span: Span) -> bool:
    return isinstance(value, span.kind) and not isinstance(value, bool) and span.low <= value <= span.high


def _is_row(value: Any, shapes: Row) -> bool:
    return isinstance(value, list) and len(value) == len(shapes) and all(map(fits, value, shapes))


_KINDS: Mapping[Any, Callable[[Any, Any], bool]] = {
    dict: _is_dict,
    Only: lambda value, shape: _is_dict(value, shape) and not _others(value, shape),
    list: lambda value, shape: isinstance(value, list) and all(fits(each, shape[0]) for each in value),
    Row: _is_row,
    tuple: lambda value, shape: any(fits(value, each) for each in shape),
    frozenset: lambda value, shape: isinstance(value, str) and value in shape,
    re.Pattern: lambda value, shape: isinstance(value, str) and bool(shape.fullmatch(value)),
    Span: _is_number,
}


def cleaned(value: Any) -> Any:
    """Return a value whose texts steer no terminal: without escape sequences and control characters but line ends."""
    if isinstance(value, str):
        return value if value.isprintable() else "\n".join(map(clean, value.split("\n")))
    if isinstance(value, list):
        return [cleaned(each) for each in value]
    return {cleaned(name): cleaned(each) for name, each in value.items()} if isinstance(value, dict) else value

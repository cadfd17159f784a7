"""Brace expansion as in bash: `node{1..4}`, `node{01..16}`, `rack{a..c}`, `node{1,3}`."""

from __future__ import annotations

import re
from itertools import product

_GROUP = re.compile(r"\{([^{}]+)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})(?:\.\.(\d{1,9}))?|([a-z])\.\.([a-z])|([A-Z])\.\.([A-Z])")


def expand(text: str, limit: int) -> list[str] | None:
    """Expand the braces of a text.

    Parameters
    ----------
    text : str
        The text. Braces that bash would not expand are kept.
    limit : int
        The largest number of results.

    Returns
    -------
    list of str or None
        None if there are more than `limit`.
    """
    pieces = _GROUP.split(text)  # text, content of a group, text, ...
    choices = [_choices(piece, limit) if index % 2 else [piece] for index, piece in enumerate(pieces)]
    count = 1
    for each in choices:
        if each is None:
            return None
        count *= len(each)
    if count > limit:
        return None
    return ["".join(parts) for parts in product(*(each or [] for each in choices))]


def _choices(content: str, limit: int) -> list[str] | None:
    match = _RANGE.fullmatch(content)
    if match is None:
        return content.split(",") if "," in content else ["{" + content + "}"]
    if match[1] is None:
        low, high = (ord(each) for each in (match[4] or match[6], match[5] or match[7]))
        return [chr(code) for code in _span(low, high, 1)]
    span = _span(int(match[1]), int(match[2]), int(match[3] or 1) or 1)
    if len(span) > limit:
        return None
    padded = any(len(end) > 1 and end.startswith("0") for end in (match[1], match[2]))
    width = max(len(match[1]), len(match[2])) if padded else 0
    return [str(number).zfill(width) for number in span]


def _span(low: int, high: int, step: int) -> range:
    return range(low, high + 1, step) if low <= high else range(low, high - 1, -step)

"""Whole numbers in what other programs, and the kernel, print."""

from __future__ import annotations


def whole(text: str) -> int | None:
    """Return a number of at most 18 digits; None for all else: `²` is a digit too, and int() refuses thousands."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

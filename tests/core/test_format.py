"""Tables and durations for the terminal."""

from __future__ import annotations

import pytest

from torchfab.core.format import align_columns, duration


def test_columns_are_aligned_without_trailing_blanks() -> None:
    assert (
        align_columns([["a", "b", "c"], ["longer", "", "d"], ["x", "yy", ""]])
        == "a       b   c\nlonger      d\nx       yy"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (754, "12 min 34 s"),
        (3599.9, "1 h 00 min"),
        (11100, "3 h 05 min"),
        (187200, "2 d 4 h"),
    ],
)
def test_durations_are_formatted(seconds: float, text: str) -> None:
    assert duration(seconds) == text

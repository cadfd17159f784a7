"""Tables, sizes and durations for the terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchfab.core.format import align_columns, duration, format_bytes, format_gib, format_offset, format_seconds


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


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (0.4, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1025, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (64 << 20, "64 MiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (2 << 30, "2 GiB"),
        (23.52 * 2**30, "23.5 GiB"),
        (99.96 * 2**30, "100 GiB"),
        (3 << 60, "3145728 TiB"),
    ],
)
def test_sizes_have_one_decimal_unless_they_are_exact(count: float, text: str) -> None:
    assert format_bytes(count) == text


@given(st.floats(0, 2**49))
def test_sizes_are_right_within_their_last_digit(count: float) -> None:
    value, unit = format_bytes(count).split()
    assert float(value) <= 1023
    unit_bytes = 1024 ** ("B", "KiB", "MiB", "GiB", "TiB").index(unit)
    digit = 0.1 if "." in value else 1
    assert abs(float(value) * unit_bytes - count) <= 0.51 * digit * unit_bytes


def test_gib_of_a_pair_has_no_unit() -> None:
    assert (format_gib(23.5 * 2**30), format_gib(None)) == ("23.5", "?")


@pytest.mark.parametrize(
    ("value", "text"), [(8.5e-5, "85 us"), (9.999e-4, "1 ms"), (0.00124, "1.24 ms"), (2.31, "2.31 s"), (120, "120 s")]
)
def test_short_durations_have_three_significant_digits(value: float, text: str) -> None:
    assert format_seconds(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "+5000 ms"), (-0.0003, "-0.3 ms"), (0.00004, "0 ms"), (-0.0123, "-12 ms")]
)
def test_clock_offsets_have_a_sign(seconds: float, text: str) -> None:
    assert format_offset(seconds) == text

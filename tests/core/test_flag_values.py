"""Flags with a type: what they accept, and what the error says about the rest."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile import HOSTILE, texts
from torchfab.core.errors import UsageError
from torchfab.core.flag_values import PORT, FlagType, NumberOr, Seconds, WholeNumber, flag, is_whole, parse


@dataclass(frozen=True)
class Flags:
    name: str = flag("", "A text.")
    count: int = flag(3, "A number.", WholeNumber(1, 10))
    wait: float | None = flag(None, "Seconds.", Seconds())
    each: tuple[str, ...] = flag((), "May be given again.")


def test_values_are_converted_and_missing_ones_have_their_default() -> None:
    assert parse(Flags, {"name": "7", "count": "7", "each": ["a", "b"]}) == Flags("7", 7, None, ("a", "b"))


def test_an_empty_text_stands_for_the_default_of_a_typed_flag() -> None:
    assert parse(Flags, {"name": "", "count": "", "wait": ""}) == Flags()


def test_values_that_have_their_type_already_are_kept() -> None:
    assert parse(Flags, {"count": 4, "wait": 2.5}) == Flags("", 4, 2.5)


def test_names_that_are_no_flags_are_left_out() -> None:
    assert parse(Flags, {"other": "1"}) == Flags()


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (WholeNumber(), "-1", "--x must be a number of at least 0, got '-1'"),
        (WholeNumber(1), "0", "--x must be a number of at least 1, got '0'"),
        (WholeNumber(1, 7), "8", "--x must be a number from 1 to 7, got '8'"),
        (
            WholeNumber(1, form="N or MIN:MAX, each "),
            "",
            "--x must be N or MIN:MAX, each a number of at least 1, got ''",
        ),
        (PORT, "65536", "--x must be a number from 1 to 65535, or 0 for a free one; got '65536'"),
        (PORT, "٣", "--x must be a number from 1 to 65535, or 0 for a free one; got '٣'"),
        (NumberOr(("all",)), "-1", "--x must be all or a number, got '-1'"),
        (NumberOr(("auto", "gpu"), 1, 1024), "1025", "--x must be auto, gpu or a number from 1 to 1024, got '1025'"),
        (Seconds(), "soon", "--x must be a number of seconds, got 'soon'"),
        (Seconds(), "nan", "--x must be a number of seconds, got 'nan'"),
        (Seconds(), "1e6", "--x must be a number of seconds, got '1e6'"),
        (Seconds(low=0.1), "0.01", "--x must be at least 0.1 seconds, got '0.01'"),
    ],
)
def test_a_wrong_value_is_an_error_that_says_what_is_expected(kind: FlagType, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        kind.parse("--x", text)
    assert caught.value.message == message


@pytest.mark.parametrize("kind", [WholeNumber(), PORT, NumberOr(("all",)), Seconds()])
@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in HOSTILE.items()] + ["9" * 5000])
def test_hostile_text_is_an_error(kind: FlagType, text: str) -> None:
    with pytest.raises(UsageError, match="got "):
        kind.parse("--x", text)


@given(st.integers(0, 999_999_999))
def test_every_whole_number_is_read_as_it_was_written(number: int) -> None:
    assert WholeNumber().parse("--x", str(number)) == number


@given(texts())
def test_a_whole_number_is_nothing_but_ascii_digits(text: str) -> None:
    assert is_whole(text) == (0 < len(text) <= 9 and all(each in "0123456789" for each in text))

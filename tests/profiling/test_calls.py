"""The numbers of collectives in a trace."""

from __future__ import annotations

from tests.profiling.factories import BASE, calls
from torchfab.profiling.calls import numbered


def numbers(began: list[float], called: list[float], operation: str = "gloo:all_reduce") -> list[int | None]:
    """Return the numbers that executions have; the times are in milliseconds."""
    found = numbered([(BASE + each / 1e3, operation) for each in began], calls(called))
    return [each.number if each else None for each in found]


def test_executions_have_the_numbers_of_their_calls() -> None:
    assert numbers([10, 20, 30], [9, 19, 29]) == [1, 2, 3]


def test_calls_before_and_after_the_profile_do_not_count() -> None:
    assert numbers([30, 40], [10, 20, 30, 40, 50, 60]) == [3, 4]


def test_an_execution_may_begin_long_after_its_call() -> None:
    assert numbers([10, 30, 50, 70], [9, 11, 12, 69]) == [1, 2, 3, 4]


def test_calls_that_the_recorder_has_no_more_have_no_number() -> None:
    assert numbers([10, 20, 30], [29]) == [None, None, 1]
    assert numbers([10, 20], []) == [None, None]


def test_names_are_compared_as_trace_and_recorder_write_them() -> None:
    assert numbers([10], [9], "gloo:allreduce") == [1]
    assert numbers([10], [9], "gloo:broadcast") == [None]


def test_no_execution_has_no_number() -> None:
    assert numbers([], [1]) == []

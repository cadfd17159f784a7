"""Helpers that several tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy

from testbed.allocation import find_program

# Examples per `fuzzed` test; `inv fuzz` sets more.
FUZZ_EXAMPLES = int(os.environ.get("TORCHFAB_FUZZ_EXAMPLES", "100"))

Test = Callable[..., None]
Refused = TypeVar("Refused", bound=Exception)


def fuzzed(*drawn: SearchStrategy[Any], **named: SearchStrategy[Any]) -> Callable[[Test], Test]:
    """Mark a property-based test of a parser of untrusted text: 100 examples in the suite, 10,000 in `inv fuzz`.

    It replaces hypothesis' `given`; a `settings` beside it would override the number of examples.
    """

    def decorate(test: Test) -> Test:
        marked: Test = pytest.mark.fuzzed(settings(max_examples=FUZZ_EXAMPLES)(given(*drawn, **named)(test)))
        return marked

    return decorate


def refusal(kind: type[Refused], work: Callable[[], object]) -> Refused | None:
    """Return the error of the given type that `work` raises; None if it raises no error."""
    try:
        work()
    except kind as error:
        return error
    return None


def require(program: str) -> str:
    """Return the program's path, or skip or fail the test as `absent` does."""
    return find_program(program) or absent(f"{program} is not installed")


def absent(problem: str) -> NoReturn:
    """Fail the test with CI=true, where everything must be installed; otherwise skip it with the reason."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{problem}, and CI=true allows no skip", pytrace=False)
    pytest.skip(problem)

"""What several tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy

from testbed.allocation import find_program

# Of each test that is `fuzzed`; `inv fuzz` says more.
FUZZ_EXAMPLES = int(os.environ.get("TORCHFAB_FUZZ_EXAMPLES", "200"))

Test = Callable[..., None]
Refused = TypeVar("Refused", bound=Exception)


def fuzzed(*drawn: SearchStrategy[Any], **named: SearchStrategy[Any]) -> Callable[[Test], Test]:
    """Mark a test of something that reads what we did not write: 200 examples in the suite, 10,000 in `inv fuzz`.

    It stands for hypothesis' `given`; no `settings` beside it, which would say how many examples.
    """

    def decorate(test: Test) -> Test:
        marked: Test = pytest.mark.fuzzed(settings(max_examples=FUZZ_EXAMPLES)(given(*drawn, **named)(test)))
        return marked

    return decorate


def refusal(kind: type[Refused], work: Callable[[], object]) -> Refused | None:
    """Return the error of this kind that is raised; None where it goes well."""
    try:
        work()
    except kind as error:
        return error
    return None


def require(program: str) -> str:
    """Give the program's path, or do without the test as `absent` says."""
    return find_program(program) or absent(f"{program} is not installed")


def absent(what: str) -> NoReturn:
    """Fail in CI, where everything must be there; skip with the reason on a laptop."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}, and CI=true allows no skip", pytrace=False)
    pytest.skip(what)

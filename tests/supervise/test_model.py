"""The policy of a supervised job."""

from __future__ import annotations

import pytest

from torchfab.core.errors import UsageError
from torchfab.supervise.model import LONGEST_WAIT_S, Policy


def test_the_wait_doubles_up_to_the_cap() -> None:
    policy = Policy(backoff_s=10)
    assert [policy.wait_s(used) for used in (0, 1, 2, 5, 6, 10_000)] == [10, 20, 40, 320, *[LONGEST_WAIT_S] * 2]


def test_a_policy_without_backoff_never_waits() -> None:
    assert Policy(backoff_s=0).wait_s(9) == 0


def test_the_policy_has_its_fields_as_json() -> None:
    assert Policy(**Policy(restarts=1, notify="mail me").as_json()) == Policy(restarts=1, notify="mail me")


@pytest.mark.parametrize(("notify", "message"), [("'open", "No closing quotation"), (" ", "neither a command nor")])
def test_a_notifier_that_is_no_command_is_an_error(notify: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Policy(notify=notify)

"""Whether a job is restarted after an attempt, and on which nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.supervise.factories import BUG, FULL, HANG, KILLED, LOST, OUTCOMES, POLICY, numbered
from torchfab.supervise.model import LONGEST_WAIT_S, AttemptOutcome, Decision, Policy, PreviousAttempt
from torchfab.supervise.policy import decide


def decided(*outcomes: AttemptOutcome, policy: Policy = POLICY) -> Decision:
    """Return the decision on the last of these outcomes; nodes that are bad or blamed were replaced."""
    *before, last = numbered(outcomes)
    return decide([PreviousAttempt(each, bool(each.bad or each.blamed)) for each in before], last, policy)


def at(outcome: AttemptOutcome, step: int | None, lived_s: float = 0.0) -> AttemptOutcome:
    return replace(outcome, step=step, lived_s=lived_s)


@pytest.mark.parametrize(
    ("outcomes", "restart", "words"),
    [
        pytest.param([replace(BUG, kind="succeeded")], False, "", id="success is the end"),
        pytest.param([replace(BUG, kind="stopped")], False, "", id="a stop on request is the end"),
        pytest.param([BUG], True, "restart 1 of 2", id="a first traceback may be bad luck"),
        pytest.param([BUG, BUG], False, "the same failure as in attempt 1", id="the same twice is a bug"),
        pytest.param([BUG, at(BUG, 20)], True, "restart 1 of 2", id="unless there was progress"),
        pytest.param([BUG, at(BUG, 20), at(BUG, 20)], False, "in attempt 2", id="progress resets the comparison"),
        pytest.param([BUG, replace(BUG, fingerprint="other")], True, "restart 2 of 2", id="two bugs are not the same"),
        pytest.param([BUG, KILLED, BUG], False, "in attempt 1", id="the same bug with another failure between"),
        pytest.param([KILLED, KILLED], True, "restart 2 of 2", id="killed twice is not a bug of the script"),
        pytest.param([KILLED] * 3, False, "2 restarts without progress", id="restarts run out"),
        pytest.param([KILLED, KILLED, at(KILLED, 11)], True, "restart 1 of 2", id="the count restarts after progress"),
        pytest.param([HANG, HANG, HANG], False, "2 restarts without progress", id="hangs use up restarts too"),
        pytest.param([LOST], True, "a node is replaced", id="a lost node is replaced"),
        pytest.param([KILLED, KILLED, LOST], True, "a node is replaced", id="replacing uses up no restart"),
        pytest.param([LOST, LOST, LOST, LOST, KILLED], True, "restart 1 of 2", id="replacements before do not count"),
        pytest.param([BUG, replace(BUG, bad={"b": "sick"})], True, "a node is replaced", id="a sick node goes first"),
        pytest.param([FULL], True, "a node is replaced", id="a node blamed by the script is replaced once"),
        pytest.param([FULL, replace(FULL, blamed=("c",))], False, "the same on b, c", id="twice, it is not the node"),
        pytest.param([FULL, at(FULL, 20)], True, "a node is replaced", id="unless there was progress between"),
        pytest.param([at(BUG, None), at(BUG, None, 601)], True, "restart 1 of 2", id="without steps, 10 minutes count"),
        pytest.param([at(BUG, None, 900), at(BUG, None, 599)], False, "in attempt 1", id="9 minutes do not count"),
        pytest.param([BUG, at(BUG, None, 900)], False, "in attempt 1", id="if the script logs steps, only steps count"),
        pytest.param([at(BUG, 30), at(BUG, 20)], False, "in attempt 1", id="steps reached before are not progress"),
    ],
)  # fmt: skip
def test_decide(outcomes: list[AttemptOutcome], restart: bool, words: str) -> None:
    decision = decided(*outcomes)
    assert (decision.restart, words in decision.reason) == (restart, True), decision


def test_bad_and_blamed_nodes_are_dropped_with_their_reasons() -> None:
    assert decided(LOST).drop == {"b": "cannot be reached"}
    assert decided(FULL).drop == {"b": "no space was left"}


def test_waits_double_up_to_the_cap() -> None:
    policy = Policy(restarts=9, backoff_s=10)
    waits = [decided(*[KILLED] * count, policy=policy).wait_s for count in range(1, 10)]
    assert waits == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert decided(LOST).wait_s == 0


@given(OUTCOMES, st.integers(0, 4))
def test_restarts_without_progress_stay_within_the_limit(outcomes: list[AttemptOutcome], restarts: int) -> None:
    policy = Policy(restarts=restarts)
    decision = decided(*outcomes, policy=policy)
    assert 0 <= decision.used <= restarts
    assert 0 <= decision.wait_s <= LONGEST_WAIT_S
    assert decision.reason
    assert not (decision.drop and not decision.restart)


@given(OUTCOMES)
def test_a_job_that_keeps_failing_without_progress_ends(outcomes: list[AttemptOutcome]) -> None:
    stuck = [replace(each, step=0, lived_s=1.0, bad={}, blamed=()) for each in outcomes]
    count = len(stuck)
    while decided(*stuck, policy=Policy(restarts=3)).restart:
        stuck.append(stuck[-1])
        assert len(stuck) <= count + 4


@given(OUTCOMES)
def test_attempts_before_progress_do_not_matter(outcomes: list[AttemptOutcome]) -> None:
    fresh = at(KILLED, 99)
    assert decided(*outcomes, fresh).reason == decided(fresh).reason

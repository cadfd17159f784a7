"""The attempts of a job are read back from its events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.supervise.factories import OUTCOMES, numbered
from torchfab.supervise import history
from torchfab.supervise.model import AttemptOutcome, PreviousAttempt


def as_events(previous: Sequence[PreviousAttempt]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [{"time": 0.0, "event": "planned"}]
    for each in previous:
        following = each.outcome.attempt + 1
        events += [
            {"time": 1.0, "event": history.ENDED, **history.outcome_as_json(each.outcome)},
            {"time": 2.0, "event": history.RESTART, "replaced": each.replaced, "next": following},
        ]
    return json.loads(json.dumps(events))  # type: ignore[no-any-return]


@given(OUTCOMES, st.booleans())
def test_previous_attempts_are_read_back_from_events(outcomes: list[AttemptOutcome], replaced: bool) -> None:
    previous = [PreviousAttempt(outcome, replaced) for outcome in numbered(outcomes)]
    attempt = len(outcomes) + 1
    assert history.previous_attempts(as_events(previous), attempt) == tuple(previous)
    assert history.pending_outcome(as_events(previous), attempt) is None


@given(OUTCOMES)
def test_a_restart_that_never_launched_leaves_the_outcome_pending(outcomes: list[AttemptOutcome]) -> None:
    previous = [PreviousAttempt(outcome) for outcome in numbered(outcomes)]
    attempt = len(outcomes)
    assert history.pending_outcome(as_events(previous), attempt) == previous[-1].outcome
    assert history.previous_attempts(as_events(previous), attempt) == tuple(previous[:-1])


@given(
    st.lists(
        st.fixed_dictionaries(
            {"time": st.floats(0, 1e9), "event": st.sampled_from([history.ENDED, history.RESTART, "left behind", "x"])},
            optional={"attempt": st.integers() | st.text(), "hosts": st.lists(st.text()) | st.none(), "kind": st.text(),
                      "name": st.text(), "step": st.text() | st.integers(), "bad": st.integers(), "next": st.text()},
        )
    )
)  # fmt: skip
def test_malformed_events_are_ignored(events: list[dict[str, Any]]) -> None:
    history.previous_attempts(events, 1)
    history.pending_outcome(events, 1)
    history.orphaned_hosts(events)
    history.render_lines(events)


def test_hosts_of_orphaned_attempts_are_read_from_events() -> None:
    events = [
        {"event": "left behind", "attempt": 1, "hosts": ["a", "b"]},
        {"event": "left behind", "attempt": 2, "hosts": ["c"]},
        {"event": "caught up", "attempt": 1, "hosts": ["a"]},
        {"event": "caught up", "attempt": 2, "hosts": ["c"]},
    ]
    assert history.orphaned_hosts(events) == {1: {"b"}}

"""Convert the events of a record: to the attempts that decisions are based on, and to text. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from torchfab.supervise.model import AttemptOutcome, PreviousAttempt

ENDED, RESTART = "attempt ended", "restart"
# The text of events that carry none.
_TEXTS = {
    "started": "launched",
    "submitted": "submitted to the scheduler",
    "stop": "stopped by fab stop",
    "stopped after a failure": "the other processes were stopped after a failure",
}


def outcome_as_json(outcome: AttemptOutcome) -> dict[str, Any]:
    """Convert an outcome to the details of an ENDED event.

    Parameters
    ----------
    outcome : AttemptOutcome
        The outcome.

    Returns
    -------
    dict
        Its fields as JSON values.
    """
    return {**asdict(outcome), "bad": dict(outcome.bad), "blamed": list(outcome.blamed)}


def previous_attempts(events: Sequence[Mapping[str, Any]], attempt: int) -> tuple[PreviousAttempt, ...]:
    """Read the attempts before the current one. Malformed events are ignored.

    Parameters
    ----------
    events : sequence of Mapping
        The events of the record.
    attempt : int
        The number of the current attempt, as in the record. A recorded restart beyond it was never launched.

    Returns
    -------
    tuple of PreviousAttempt
        The oldest first.
    """
    return _read(events, attempt)[0]


def pending_outcome(events: Sequence[Mapping[str, Any]], attempt: int) -> AttemptOutcome | None:
    """Read the outcome of the current attempt.

    Parameters
    ----------
    events : sequence of Mapping
        The events of the record.
    attempt : int
        The number of the current attempt, as in the record.

    Returns
    -------
    AttemptOutcome or None
        None if no outcome is recorded, or a restart followed it.
    """
    return _read(events, attempt)[1]


def _read(
    events: Sequence[Mapping[str, Any]], attempt: int
) -> tuple[tuple[PreviousAttempt, ...], AttemptOutcome | None]:
    previous: list[PreviousAttempt] = []
    pending: AttemptOutcome | None = None
    planned = 0
    for event in events:
        if event["event"] == ENDED:
            pending, planned = _parse_outcome(event), 0
        elif event["event"] == RESTART and pending is not None:
            previous.append(PreviousAttempt(pending, bool(event.get("replaced"))))
            following = event.get("next")
            pending, planned = None, following if isinstance(following, int) else 0
    if planned > attempt and previous:
        return tuple(previous[:-1]), previous[-1].outcome
    return tuple(previous), pending


def _parse_outcome(event: Mapping[str, Any]) -> AttemptOutcome | None:
    names = {each.name for each in fields(AttemptOutcome)}
    try:
        values = {name: value for name, value in event.items() if name in names}
        outcome = AttemptOutcome(
            **{**values, "blamed": tuple(values.get("blamed", ())), "bad": dict(values.get("bad", {}))}
        )
        numbers = (outcome.attempt, outcome.lived_s, outcome.step or 0, outcome.code or 0)
        return outcome if all(isinstance(each, int | float) for each in numbers) else None
    except (TypeError, ValueError):
        return None


def orphaned_hosts(events: Sequence[Mapping[str, Any]]) -> dict[int, set[str]]:
    """Find the hosts on which earlier attempts may still run, because they were out of reach when they were stopped.

    Parameters
    ----------
    events : sequence of Mapping
        The events of the record.

    Returns
    -------
    dict of int to set of str
        Host labels by attempt.
    """
    orphaned: dict[int, set[str]] = {}
    for event in events:
        attempt, hosts = event.get("attempt"), event.get("hosts")
        if isinstance(attempt, int) and isinstance(hosts, list):
            if event["event"] == "left behind":
                orphaned.setdefault(attempt, set()).update(map(str, hosts))
            elif event["event"] == "caught up":
                orphaned.setdefault(attempt, set()).difference_update(map(str, hosts))
    return {attempt: hosts for attempt, hosts in orphaned.items() if hosts}


def render_lines(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Render events as text, for `fab jobs --events`.

    Parameters
    ----------
    events : sequence of Mapping
        The events of the record.

    Returns
    -------
    list of str
        One line per event that has a text.
    """
    shown = [event for event in events if "text" in event or event["event"] in _TEXTS]
    # For later attempts the supervisor's own events replace `started`.
    return [render_line(event) for event in shown if event["event"] != "started" or event.get("attempt", 1) == 1]


def render_line(event: Mapping[str, Any]) -> str:
    """Render an event as one line.

    Parameters
    ----------
    event : Mapping
        The event: `time`, `event`, and optionally `text`.

    Returns
    -------
    str
        Local time and text.
    """
    text = str(event.get("text") or _TEXTS.get(event["event"], event["event"]))
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(event['time']))}  {text}"

"""What happened, from the record's events: the history that decisions rest on, and lines for people. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from torchfab.supervise.model import AttemptOutcome, PreviousAttempt

ENDED, RESTART = "attempt ended", "restart"
_PLAIN = {
    "started": "launched",
    "submitted": "submitted to the scheduler",
    "stop": "stopped by fab stop",
    "stopped after a failure": "the rest was stopped, after a failure",
}


def of_ending(ending: AttemptOutcome) -> dict[str, Any]:
    """Return an ending as an event's details."""
    return {**asdict(ending), "bad": dict(ending.bad), "blamed": list(ending.blamed)}


def history(events: Sequence[Mapping[str, Any]], attempt: int) -> tuple[PreviousAttempt, ...]:
    """Return the endings that a restart followed; what an event lacks or has wrong leaves it out.

    Parameters
    ----------
    attempt : int
        The current one, by the record: a restart that was noted, and of which there is no record, never came about.
    """
    return _read(events, attempt)[0]


def open_ending(events: Sequence[Mapping[str, Any]], attempt: int) -> AttemptOutcome | None:
    """Return how the current attempt ended, where that was noted and no restart followed yet; else None."""
    return _read(events, attempt)[1]


def _read(
    events: Sequence[Mapping[str, Any]], attempt: int
) -> tuple[tuple[PreviousAttempt, ...], AttemptOutcome | None]:
    found: list[PreviousAttempt] = []
    last: AttemptOutcome | None = None
    planned = 0
    for event in events:
        if event["event"] == ENDED:
            last, planned = _ending(event), 0
        elif event["event"] == RESTART and last is not None:
            found.append(PreviousAttempt(last, bool(event.get("replaced"))))
            following = event.get("next")
            last, planned = None, following if isinstance(following, int) else 0
    if planned > attempt and found:
        return tuple(found[:-1]), found[-1].outcome
    return tuple(found), last


def _ending(event: Mapping[str, Any]) -> AttemptOutcome | None:
    names = {each.name for each in fields(AttemptOutcome)}
    try:
        values = {name: value for name, value in event.items() if name in names}
        made = AttemptOutcome(
            **{**values, "blamed": tuple(values.get("blamed", ())), "bad": dict(values.get("bad", {}))}
        )
        numbers = (made.attempt, made.lived_s, made.step or 0, made.code or 0)
        return made if all(isinstance(each, int | float) for each in numbers) else None
    except (TypeError, ValueError):
        return None


def left_behind(events: Sequence[Mapping[str, Any]]) -> dict[int, set[str]]:
    """Return where earlier attempts may still run: by attempt, the hosts that could not be asked to stop."""
    found: dict[int, set[str]] = {}
    for event in events:
        attempt, hosts = event.get("attempt"), event.get("hosts")
        if isinstance(attempt, int) and isinstance(hosts, list):
            if event["event"] == "left behind":
                found.setdefault(attempt, set()).update(map(str, hosts))
            elif event["event"] == "caught up":
                found.setdefault(attempt, set()).difference_update(map(str, hosts))
    return {attempt: hosts for attempt, hosts in found.items() if hosts}


def lines(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the events for people, a line each."""
    told = [event for event in events if "text" in event or event["event"] in _PLAIN]
    # A supervisor says more about an attempt than that it was started.
    return [line(event) for event in told if event["event"] != "started" or event.get("attempt", 1) == 1]


def line(event: Mapping[str, Any]) -> str:
    """Return an event as one line: when, and what."""
    words = str(event.get("text") or _PLAIN.get(event["event"], event["event"]))
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(event['time']))}  {words}"

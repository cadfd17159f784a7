"""The story of a supervised job while it is written: into the record, onto the terminal, to a notifier."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from torchfab.core.console import write_err
from torchfab.records import Record
from torchfab.supervise import history
from torchfab.supervise.model import AttemptOutcome, PreviousAttempt
from torchfab.supervise.notifier import Notifier

# What a notifier is told of, and what it is told.
_NEWS = ("outcome", "restart", "lemon", "stall", "end")
_TOLD_ON = ("attempt", "text", "code", "hosts")
_SHORTEST_SECRET = 4


class EventJournal:
    """Write down what happens to a job.

    Its events are kept in memory as well: a disk that is full must not make it forget how often it was restarted.

    Parameters
    ----------
    record : Record
        The job's current attempt.
    secrets : collection of str
        What must not be told.
    notifier : Notifier
        Whom to tell.
    """

    def __init__(self, record: Record, secrets: Collection[str], notifier: Notifier) -> None:
        self.record, self.secrets, self.notifier = record, secrets, notifier
        self.events: list[Mapping[str, Any]] = list(record.events())

    def note(self, event: str, text: str = "", **details: Any) -> None:
        """Write an event down, print its text, and tell it on."""
        for secret in self.secrets:
            text = text.replace(secret, "***") if len(secret) >= _SHORTEST_SECRET else text
        known = {"attempt": self.record.attempt, **details, **({"text": text} if text else {})}
        now = time.time()
        self.record.note(event, **known)
        self.events.append({"time": now, "event": event, **known})
        if text:
            write_err(history.line({"time": now, "event": event, "text": text}))
        if event in _NEWS:
            told = {key: known[key] for key in _TOLD_ON if key in known}
            self.notifier.tell({"job": self.record.name, "event": event, "time": now, **told})

    def past(self) -> tuple[PreviousAttempt, ...]:
        """Return the endings that a restart followed."""
        return history.history(self.events, self.record.attempt)

    def open_ending(self) -> AttemptOutcome | None:
        """Return how the current attempt ended, where that was noted and no restart followed yet."""
        return history.open_ending(self.events, self.record.attempt)

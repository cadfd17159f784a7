"""Write the events of a supervised job to its record, the terminal and the notifier."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from torchfab.core.console import write_err
from torchfab.records import Record
from torchfab.supervise import history
from torchfab.supervise.model import AttemptOutcome, PreviousAttempt
from torchfab.supervise.notifier import Notifier

# The events that go to the notifier, and their keys besides `job`, `event` and `time`.
_NOTIFIED_EVENTS = ("outcome", "restart", "lemon", "stall", "end")
_NOTIFIED_KEYS = ("attempt", "text", "code", "hosts")
_SHORTEST_SECRET = 4


class EventJournal:
    """The events of a job.

    The journal also keeps the events in memory, so that the count of restarts survives a full disk.

    Parameters
    ----------
    record : Record
        The job's current attempt.
    secrets : collection of str
        Values to mask in the text of events.
    notifier : Notifier
        The notifier of `--notify`.
    """

    def __init__(self, record: Record, secrets: Collection[str], notifier: Notifier) -> None:
        self.record, self.secrets, self.notifier = record, secrets, notifier
        self.events: list[Mapping[str, Any]] = list(record.events())

    def note(self, event: str, text: str = "", **details: Any) -> None:
        """Record an event, print its text, and send it to the notifier if the notifier handles its kind.

        Parameters
        ----------
        event : str
            The kind of event: `restart`.
        text : str
            One line for the terminal. Empty: nothing is printed.
        **details : any JSON value
            Further keys of the event.
        """
        for secret in self.secrets:
            text = text.replace(secret, "***") if len(secret) >= _SHORTEST_SECRET else text
        values = {"attempt": self.record.attempt, **details, **({"text": text} if text else {})}
        now = time.time()
        self.record.note(event, **values)
        self.events.append({"time": now, "event": event, **values})
        if text:
            write_err(history.render_line({"time": now, "event": event, "text": text}))
        if event in _NOTIFIED_EVENTS:
            notified = {key: values[key] for key in _NOTIFIED_KEYS if key in values}
            self.notifier.send({"job": self.record.name, "event": event, "time": now, **notified})

    def previous_attempts(self) -> tuple[PreviousAttempt, ...]:
        """Return the attempts before the current one.

        Returns
        -------
        tuple of PreviousAttempt
            The oldest first.
        """
        return history.previous_attempts(self.events, self.record.attempt)

    def pending_outcome(self) -> AttemptOutcome | None:
        """Return the outcome of the current attempt.

        Returns
        -------
        AttemptOutcome or None
            None if no outcome is recorded, or a restart followed it.
        """
        return history.pending_outcome(self.events, self.record.attempt)

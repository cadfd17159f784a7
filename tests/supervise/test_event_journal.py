"""The events of a supervised job: in its record, in memory, on the terminal, to the notifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.records.factories import plan_named, write
from tests.supervise.factories import BUG, numbered
from torchfab.records import Record, Records
from torchfab.supervise import history
from torchfab.supervise.event_journal import EventJournal
from torchfab.supervise.notifier import Notifier


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return write(Records(tmp_path / "jobs"), plan_named())


def make_journal(record: Record, received: Path, *secrets: str) -> EventJournal:
    """Return a journal whose notifier appends what it gets to a file."""
    received.write_text("")
    program = received.with_suffix(".sh")
    program.write_text(f"#!/bin/sh\ncat >> '{received}'\necho >> '{received}'\n")
    program.chmod(0o755)
    return EventJournal(record, secrets, Notifier(f"'{program}'", lambda text: pytest.fail(text)))


def test_an_event_is_recorded_printed_and_sent(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = make_journal(record, tmp_path / "received")
    journal.note("restart", "restart 1 of 3", hosts=["node1"], next=2)
    journal.notifier.close()
    (event,) = [each for each in record.events() if each["event"] == "restart"]
    expected = {"attempt": 1, "hosts": ["node1"], "text": "restart 1 of 3"}
    assert {**expected, "next": 2}.items() <= event.items()
    assert "restart 1 of 3" in capsys.readouterr().err
    sent = json.loads((tmp_path / "received").read_text())
    assert sent.pop("time") > 0
    assert sent == {"job": "gpt2", "event": "restart", **expected}


def test_other_events_are_neither_printed_nor_sent(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = make_journal(record, tmp_path / "received")
    journal.note("step", step=7)
    journal.notifier.close()
    assert capsys.readouterr().err == ""
    assert (tmp_path / "received").read_text() == ""
    assert journal.events[-1]["step"] == 7


def test_secrets_are_masked_unless_they_are_too_short(record: Record, tmp_path: Path) -> None:
    journal = make_journal(record, tmp_path / "received", "hunter2", "a")
    journal.note("outcome", "a token hunter2 was wrong")
    journal.notifier.close()
    assert journal.events[-1]["text"] == "a token *** was wrong"
    assert "hunter2" not in (tmp_path / "received").read_text()


def test_attempts_are_read_from_memory_if_the_record_cannot_be_written(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        """Write nothing, as on a full disk."""

    monkeypatch.setattr(Record, "note", full)
    journal = make_journal(record, tmp_path / "received")
    (outcome,) = numbered([BUG])
    journal.note(history.ENDED, **history.outcome_as_json(outcome))
    assert journal.pending_outcome() == outcome
    assert journal.previous_attempts() == ()
    journal.notifier.close()

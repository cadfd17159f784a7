"""The events and the state of one job."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.records.factories import plan_named, write
from torchfab.records import Records


def test_a_launch_is_confirmed_by_its_started_event_per_attempt(records: Records) -> None:
    record = write(records, plan_named())
    seen = [record.is_confirmed]
    for event in ("started", "stop", "planned"):
        record.note(event)
        seen.append(record.is_confirmed)
    assert seen == [False, True, True, False]


def test_events_are_appended_with_their_time(records: Records) -> None:
    record = write(records, plan_named())
    record.note("stop", grace_s=10.0, unreachable=["it's\n"])
    lines = [json.loads(line) for line in (record.folder / "events.jsonl").read_text().splitlines()]
    assert [{key: value for key, value in line.items() if key != "time"} for line in lines] == [
        {"event": "planned", "nodes": 2, "world_size": 5},
        {"event": "stop", "grace_s": 10.0, "unreachable": ["it's\n"]},
    ]
    assert lines[0]["time"] <= lines[1]["time"]


def test_a_job_without_a_state_file_is_starting(records: Records) -> None:
    record = write(records, plan_named(), created=5.0)
    assert record.last_seen() == {"state": "starting", "code": None, "ended": False, "seen": 5.0}


def test_the_last_state_is_remembered(records: Records) -> None:
    record = write(records, plan_named())
    record.remember("running", None, ended=False)
    record.remember("failed", 7, ended=True)
    seen = record.last_seen()
    assert (seen["state"], seen["code"], seen["ended"]) == ("failed", 7, True)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '"x"', "null", "\x00"])
def test_a_job_with_an_unreadable_state_file_is_starting(records: Records, text: str) -> None:
    record = write(records, plan_named())
    (record.folder / "state.json").write_text(text)
    assert record.last_seen()["state"] == "starting"


def test_notes_on_a_removed_record_are_dropped(records: Records) -> None:
    record = write(records, plan_named())
    records.release("gpt2")
    record.note("stop")
    record.remember("failed", 1, ended=True)
    assert not record.folder.exists()


def test_a_job_is_elastic_if_it_needs_fewer_nodes_than_it_has(records: Records) -> None:
    record = write(records, plan_named())
    assert (record.is_elastic, replace(record, min_nodes=1).is_elastic) == (False, True)

"""`fab jobs`: what was launched from here, what happened to it, and the end of its record."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

from torchfab import inventory, runtimes
from torchfab.columns import columns
from torchfab.commandline import say, tell
from torchfab.errors import HostsFailedError, TorchfabError, UsageError
from torchfab.fanout import fan_out
from torchfab.life import as_of_today
from torchfab.life.status import ask_status
from torchfab.logview import clean
from torchfab.records import Record
from torchfab.supervise import lock, story
from torchfab.surroundings import Surroundings

_JOBS_AT_ONCE = 8


def show_events(record: Record, as_json: bool) -> None:
    """Print what happened to a job, a line each."""
    if as_json:
        say(json.dumps(list(record.events()), indent=2))
        return
    for line in story.lines(record.events()):
        say(line)


def show_jobs(around: Surroundings, as_json: bool, job: str) -> None:
    """Print the jobs, or one, that were launched from here; those that have not ended are asked how they are."""
    records = [around.records.get(job)] if job else around.records.all()
    open_ones = [as_of_today(record, around) for record in records if not record.last_seen()["ended"]]
    for record, result in fan_out(open_ones, ask_status, _JOBS_AT_ONCE):
        if isinstance(result, Exception):
            tell(f"job {record.name} could not be asked: {result}")
    if as_json:
        say(json.dumps([_job_as_json(record) for record in records], indent=2))
    elif not records:
        say("no job was launched from here yet; the first one: fab launch-per-node --follow")
    else:
        head = ["job", "state", "launcher", "nodes", "ranks", "launched", "script"]
        say(columns([head, *(_job_row(record) for record in records)]))


def _job_row(record: Record) -> list[str]:
    seen = record.last_seen()
    state = seen["state"] + (f" ({seen['code']})" if seen["code"] else "")
    launched = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created))
    script = clean(" ".join(" ".join(record.script).split()))  # a script given as text (-c) has lines
    return [
        *(record.name, state, record.launcher, str(len(record.nodes) or record.min_nodes), str(record.world_size)),
        launched,
        script if len(script) <= 60 else script[:59] + "…",
    ]


def _job_as_json(record: Record) -> dict[str, Any]:
    seen = record.last_seen()
    return {
        "job": record.name,
        "job_id": record.job_id,
        "state": seen["state"],
        "exit_code": seen["code"],
        "ended": seen["ended"],
        "launcher": record.launcher,
        "runtime": record.runtime,
        "nodes": [node.label for node in record.nodes],
        "world_size": record.world_size,
        "created": record.created,
        "script": list(record.script),
    }


def remove(job: str, around: Surroundings) -> None:
    """Remove the record of a job that has ended, and its folders on its nodes.

    Raises
    ------
    UsageError
        The job has not ended.
    """
    if not job:
        raise UsageError("--remove needs the name of a job", "fab jobs lists them; then: fab jobs --remove NAME")
    record = as_of_today(around.records.get(job), around)
    if (held := lock.holder(record.folder)) is not None:
        raise UsageError(f"job {job} is supervised ({lock.words(held)})", f"fab stop {job}")
    found = ask_status(record)
    silent = [each.node.label for each in found.nodes if each.state == "unreachable"]
    if silent:
        raise UsageError(
            f"{inventory.fold(silent)} cannot be asked whether job {record.name} has ended there",
            f"try again when that works; if it never will, delete the record by hand: {record.folder}",
        )
    if not found.has_ended:
        raise UsageError(f"job {record.name} has not ended", f"fab stop {record.name}")
    failed: dict[str, TorchfabError] = {}
    for attempt in [*around.records.earlier(record), record]:
        settled = replace(attempt, settings=record.settings)
        failed.update(runtimes.of(record.runtime).forget(settled))
    if failed:
        raise HostsFailedError(f"the job's folder is still on {len(failed)} nodes; its record was kept", failed)
    around.records.release(record.name)
    say(f"job {record.name}: record and logs removed")

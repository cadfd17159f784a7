"""`fab jobs`: list the jobs launched from here, print their events, and remove their records."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from torchfab import documents, runtimes
from torchfab.core import inventory
from torchfab.core.console import write_err, write_out
from torchfab.core.errors import HostsFailedError, TorchfabError, UsageError
from torchfab.core.format import align_columns, plural
from torchfab.core.log_lines import strip_controls
from torchfab.launching import job_lookup
from torchfab.launching.context import CommandContext
from torchfab.launching.job_lookup import with_current_settings
from torchfab.monitoring.job_status import ask_status
from torchfab.records import Record
from torchfab.supervise import history, job_locks


def run(ctx: CommandContext, job: str, *, as_json: bool, remove: bool, events: bool) -> int:
    """List jobs, print the events of one, or remove its record.

    Parameters
    ----------
    ctx : CommandContext
        Records and settings of this command.
    job : str
        Name of the job; empty: all jobs, or with `events` the latest.
    as_json : bool
        Print JSON.
    remove : bool
        Remove the record.
    events : bool
        Print the events.

    Returns
    -------
    int
        Exit code 0.
    """
    if remove:
        remove_record(job, ctx)
    elif events:
        show_events(job_lookup.find(job, ctx), as_json)
    else:
        show_jobs(ctx, as_json, job)
    return 0


def show_events(record: Record, as_json: bool) -> None:
    """Print the events of a job, one per line.

    Parameters
    ----------
    record : Record
        The job.
    as_json : bool
        Print JSON.
    """
    if as_json:
        write_out(documents.encode(list(record.events())))
        return
    for line in history.render_lines(record.events()):
        write_out(line)


def show_jobs(ctx: CommandContext, as_json: bool, job: str) -> None:
    """Print the jobs launched from here. The status of jobs that have not ended is updated first.

    Parameters
    ----------
    ctx : CommandContext
        Records and settings of this command.
    as_json : bool
        Print JSON.
    job : str
        Print this job only; empty: all.
    """
    records, problems = job_lookup.find_all(ctx, job)
    for name, problem in problems.items():
        write_err(f"the status of job {name} is unknown: {problem}")
    if as_json:
        write_out(documents.encode([_job_as_json(record) for record in records]))
    elif not records:
        write_out("no job was launched from here yet; to launch one: fab launch-per-node --follow")
    else:
        head = ["job", "state", "launcher", "nodes", "ranks", "launched", "script"]
        write_out(align_columns([head, *(_job_row(record) for record in records)]))


def _job_row(record: Record) -> list[str]:
    last = record.last_seen()
    state = last["state"] + (f" ({last['code']})" if last["code"] else "")
    launched = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created))
    script = strip_controls(
        " ".join(" ".join(record.script).split())
    )  # a script given as text (-c) may have several lines
    return [
        *(record.name, state, record.launcher, str(len(record.nodes) or record.min_nodes), str(record.world_size)),
        launched,
        script if len(script) <= 60 else script[:59] + "…",
    ]


def _job_as_json(record: Record) -> dict[str, Any]:
    last = record.last_seen()
    return {
        "job": record.name,
        "job_id": record.job_id,
        "state": last["state"],
        "exit_code": last["code"],
        "ended": last["ended"],
        "launcher": record.launcher,
        "runtime": record.runtime,
        "nodes": [node.label for node in record.nodes],
        "world_size": record.world_size,
        "created": record.created,
        "script": list(record.script),
    }


def remove_record(job: str, ctx: CommandContext) -> None:
    """Remove the record of a job that has ended, and its folders on its nodes.

    Parameters
    ----------
    job : str
        Name of the job.
    ctx : CommandContext
        Records and settings of this command.

    Raises
    ------
    UsageError
        No name is given, or the job is supervised, has not ended, or has unreachable nodes.
    HostsFailedError
        A folder could not be removed; the record is kept.
    """
    if not job:
        raise UsageError("--remove needs the name of a job", "fab jobs lists them; then: fab jobs --remove NAME")
    record = with_current_settings(ctx.records.get(job), ctx)
    if (holder := job_locks.holder(record.folder)) is not None:
        raise UsageError(f"job {job} is supervised ({job_locks.describe(holder)})", f"fab stop {job}")
    status = ask_status(record)
    unreachable = [each.node.label for each in status.nodes if each.state == "unreachable"]
    if unreachable:
        raise UsageError(
            f"{inventory.fold(unreachable)} cannot report whether job {record.name} has ended there",
            f"try again when it is reachable; if it is gone for good, delete the record: {record.folder}",
        )
    if not status.has_ended:
        raise UsageError(f"job {record.name} has not ended", f"fab stop {record.name}")
    failed: dict[str, TorchfabError] = {}
    for attempt in [*ctx.records.earlier(record), record]:
        reachable = replace(attempt, settings=record.settings)
        failed.update(runtimes.load(record.runtime).forget(reachable))
    if failed:
        raise HostsFailedError(
            f"the job's folder is still on {plural(len(failed), 'node')}; its record was kept", failed
        )
    ctx.records.release(record.name)
    write_out(f"job {record.name}: record and logs removed")

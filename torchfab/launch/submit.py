"""A launch on a cluster's own scheduler: the job is rendered into what that takes, submitted, and recorded."""

from __future__ import annotations

from typing import Any

from torchfab import runtimes
from torchfab.cli.flags import JobFlags
from torchfab.core.console import write_out
from torchfab.core.errors import TorchfabError
from torchfab.core.specs import Submission
from torchfab.launch.context import CommandContext
from torchfab.launch.interrupts import DeferInterrupts, InterruptibleOnce, StopOnSignal
from torchfab.launch.launch import make_job
from torchfab.launchers import BatchLauncher
from torchfab.records import Record


def submit(launcher: BatchLauncher, flags: JobFlags, own: Any, ctx: CommandContext) -> Record | None:
    """Hand a job to the scheduler of the launcher's runtime, or print what would be handed over.

    Returns
    -------
    Record or None
        The record of the job; None for a dry run.

    Raises
    ------
    TorchfabError
        Something is wrong; nothing was submitted, or what had been was taken back.
    """
    submission = launcher.plan(make_job(launcher, flags, own, ctx))
    if flags.dry_run:
        write_out(submission.text.rstrip("\n"))
        return None
    name, records = submission.job.name, ctx.records
    records.claim(name)
    try:
        with StopOnSignal():
            record = records.write_submission(submission, launcher.RUNTIME, ctx.now, ctx.settings)
            with InterruptibleOnce():
                details = runtimes.load_batch(launcher.RUNTIME).submit(record, submission)
    except BaseException as error:
        if not (isinstance(error, TorchfabError) and error.uncertain_hosts):  # else `fab stop` must find it
            records.release(name)
        raise
    with DeferInterrupts():
        record = records.with_details(record, **details)
        record.note("submitted", **details)
        records.end_launch(name)  # from here on `fab stop` ends the job, not us, who may follow it
    _announce(submission, record)
    return record


def _announce(submission: Submission, record: Record) -> None:
    name = submission.job.name
    known_as = f" as {record.details['known_as']}" if "known_as" in record.details else ""
    write_out(f"job {name}: {submission.world_size} ranks on {submission.nodes} nodes, submitted{known_as}")
    for key, value in submission.defaults.items():
        write_out(f"  {key:8} {value}")
    write_out(f"next: fab logs --follow {name} | fab status {name} | fab stop {name}")

"""A launch on a cluster's own scheduler: the job is rendered into what that takes, submitted, and recorded."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torchfab import runtimes
from torchfab.commandline import say
from torchfab.errors import TorchfabError
from torchfab.flags import JobFlags
from torchfab.job import Submission
from torchfab.launch import HeldBack, InterruptibleOnce, StoppedByName, make_job
from torchfab.records import Record
from torchfab.surroundings import Surroundings


def submit(launcher: ModuleType, flags: JobFlags, own: Any, around: Surroundings) -> Record | None:
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
    submission: Submission = launcher.plan(make_job(launcher, flags, own, around))
    if flags.dry_run:
        say(submission.text.rstrip("\n"))
        return None
    name, records = submission.job.name, around.records
    records.claim(name)
    try:
        with StoppedByName():
            record = records.write_submission(submission, launcher.RUNTIME, around.now, around.settings)
            with InterruptibleOnce():
                details = runtimes.of(launcher.RUNTIME).submit(record, submission)
    except BaseException as error:
        if not (isinstance(error, TorchfabError) and error.unsure):  # else `fab stop` must find it
            records.release(name)
        raise
    with HeldBack():
        record = records.with_details(record, **details)
        record.note("submitted", **details)
        records.launched(name)  # from here on `fab stop` ends the job, not us, who may follow it
    _announce(submission, record)
    return record


def _announce(submission: Submission, record: Record) -> None:
    name = submission.job.name
    known_as = f" as {record.details['known_as']}" if "known_as" in record.details else ""
    say(f"job {name}: {submission.world_size} ranks on {submission.nodes} nodes, submitted{known_as}")
    for key, value in submission.chosen.items():
        say(f"  {key:8} {value}")
    say(f"next: fab logs --follow {name} | fab status {name} | fab stop {name}")

"""Launch a job on a cluster's scheduler: render it (sbatch script or manifest), submit it, and record it."""

from __future__ import annotations

from typing import Any

from torchfab import runtimes
from torchfab.cli.flags import JobFlags
from torchfab.core.console import write_out
from torchfab.core.errors import UsageError
from torchfab.core.format import plural
from torchfab.core.specs import Submission
from torchfab.launchers import BatchLauncher
from torchfab.launching import transaction
from torchfab.launching.context import CommandContext
from torchfab.launching.interrupts import DeferInterrupts, InterruptibleOnce
from torchfab.launching.launch import make_job
from torchfab.records import Record


def submit(launcher: BatchLauncher, flags: JobFlags, own: Any, ctx: CommandContext) -> Record | None:
    """Submit a job to the scheduler of the launcher's runtime, or print the submission (`--dry-run`).

    Parameters
    ----------
    launcher : module
        The launcher.
    flags, own : dataclass
        The flags that all launches share, and those of this launcher.
    ctx : CommandContext
        The context of the command.

    Returns
    -------
    Record or None
        The record of the job; None for a dry run.

    Raises
    ------
    TorchfabError
        The submission failed, and was cancelled if the scheduler had accepted it.
    """
    submission = plan(launcher, flags, own, ctx)
    if flags.dry_run:
        write_out(submission.text.rstrip("\n"))
        return None
    name, records = submission.job.name, ctx.records
    with transaction.claimed_name(records, name):
        record = records.write_submission(submission, launcher.RUNTIME, ctx.now, ctx.settings)
        with InterruptibleOnce():
            details = runtimes.load_batch(launcher.RUNTIME).submit(record, submission)
    with DeferInterrupts():
        record = records.with_details(record, **details)
        record.note("submitted", **details)
        # From here on, `fab stop` ends the job rather than this process, which may follow the logs.
        records.end_launch(name)
    _announce(submission, record)
    return record


def plan(launcher: BatchLauncher, flags: JobFlags, own: Any, ctx: CommandContext) -> Submission:
    """Return the submission of a job; its `text` is the dry run.

    Parameters
    ----------
    launcher : module
        The launcher.
    flags, own : dataclass
        The flags that all launches share, and those of this launcher.
    ctx : CommandContext
        The context of the command.

    Returns
    -------
    Submission

    Raises
    ------
    UsageError
        A flag is wrong.
    """
    if ctx.hosts:
        raise UsageError("-H names hosts, and a scheduler chooses its own", "leave it out: --nodes says how many")
    return launcher.plan(make_job(launcher, flags, own, ctx))


def _announce(submission: Submission, record: Record) -> None:
    known_as = f" as {record.details['known_as']}" if "known_as" in record.details else ""
    outcome = f"{plural(submission.world_size, 'rank')} on {plural(submission.nodes, 'node')}, submitted{known_as}"
    transaction.announce(submission.job.name, outcome, submission.defaults, ("logs --follow", "status", "stop"))

"""Find the record of the job that a command names. Commands use a job's runtime, never its launcher."""

from __future__ import annotations

import logging
from dataclasses import replace

from torchfab.core.console import write_err
from torchfab.launching.context import CommandContext
from torchfab.monitoring.job_status import ask_status
from torchfab.records import Record
from torchfab.transport.fanout import fan_out

_JOBS_AT_ONCE = 8
_log = logging.getLogger(__name__)


def find(job: str, ctx: CommandContext, attempt: str = "") -> Record:
    """Return the record of a job or of one of its attempts.

    `-S`, `-i` and `-t` on the command line and the current timeouts replace the settings of the launch.

    Parameters
    ----------
    job : str
        Name of the job; empty: the latest one, whose name is printed on stderr.
    ctx : CommandContext
        Records and settings of this command.
    attempt : str
        Number of the attempt; empty: the current one.

    Returns
    -------
    Record
        The record with the current settings.
    """
    record = ctx.records.get(job) if job else ctx.records.latest()
    if not job:
        write_err(f"job {record.name} (the latest)")
    _log.debug("job %s: runtime %s, %d nodes, record %s", record.name, record.runtime, len(record.nodes), record.folder)
    return with_current_settings(ctx.records.attempt(record, attempt), ctx)


def find_all(ctx: CommandContext, job: str = "") -> tuple[list[Record], dict[str, Exception]]:
    """Read the records of all jobs, and ask for the status of those that have not ended.

    Parameters
    ----------
    ctx : CommandContext
        Records and settings of this command.
    job : str
        Only this job. Default: all.

    Returns
    -------
    list of Record, dict of str to Exception
        The records, the latest first, with their status saved; and by job name, why nodes are unreachable.
    """
    records = [ctx.records.get(job)] if job else ctx.records.all()
    unfinished = [with_current_settings(record, ctx) for record in records if not record.last_seen()["ended"]]
    results = fan_out(unfinished, ask_status, _JOBS_AT_ONCE)
    return records, {record.name: result for record, result in results if isinstance(result, Exception)}


def with_current_settings(record: Record, ctx: CommandContext) -> Record:
    """Return the record with the connection settings of this command line.

    Parameters
    ----------
    record : Record
        The job.
    ctx : CommandContext
        Settings of this command.

    Returns
    -------
    Record
        A copy; ssh config and identities of the launch remain if this command line has none.
    """
    given = ctx.settings
    settings = replace(
        record.settings,
        ssh_config=given.ssh_config or record.settings.ssh_config,
        identities=given.identities or record.settings.identities,
        connect_timeout_s=given.connect_timeout_s,
        timeout_is_given=given.timeout_is_given,
        answer_timeout_s=given.answer_timeout_s,
        fanout=given.fanout,
    )
    return replace(record, settings=settings)


def stall_s(flag: float | None, ctx: CommandContext) -> float:
    """Return after how many seconds without output a job counts as hanging.

    Parameters
    ----------
    flag : float or None
        Value of `--stall`, in seconds; None: use `stall_s` of fabric.yaml.
    ctx : CommandContext
        Configuration of this command.

    Returns
    -------
    float
        The seconds; 0: never.
    """
    return float(ctx.config["stall_s"]) if flag is None else flag

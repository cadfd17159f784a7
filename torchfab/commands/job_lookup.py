"""Find the job that a command is about. Commands ask a job's runtime, never its launcher."""

from __future__ import annotations

from dataclasses import replace

from torchfab.core.console import write_err
from torchfab.launch.context import CommandContext
from torchfab.records import Record


def find(job: str, ctx: CommandContext, attempt: str = "") -> Record:
    """Return the record of a job, or of one of its attempts; of the latest job where none is named, and say so.

    `-S`, `-i` and `-t` on the command line, and today's timeouts, replace what the job was launched with.
    """
    record = ctx.records.get(job) if job else ctx.records.latest()
    if not job:
        write_err(f"job {record.name} (the latest)")
    return as_of_today(ctx.records.attempt(record, attempt), ctx)


def as_of_today(record: Record, ctx: CommandContext) -> Record:
    """Return the record with what this command line says of how its nodes are reached."""
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
    """Return after how many seconds of silence a job is said to hang: by the flag `--stall`, else by the setting."""
    return float(ctx.config["stall_s"]) if flag is None else flag

"""The life of a job, as commands: one module for each. What they all begin with is here: which job is meant.

They ask the job's runtime, never its launcher.
"""

from __future__ import annotations

from dataclasses import replace

from torchfab.commandline import tell
from torchfab.records import Record
from torchfab.surroundings import Surroundings


def find(job: str, around: Surroundings, attempt: str = "") -> Record:
    """Return the record of a job, or of one of its attempts; of the latest job where none is named, and say so.

    `-S`, `-i` and `-t` on the command line, and today's timeouts, replace what the job was launched with.
    """
    record = around.records.get(job) if job else around.records.latest()
    if not job:
        tell(f"job {record.name} (the latest)")
    return as_of_today(around.records.attempt(record, attempt), around)


def as_of_today(record: Record, around: Surroundings) -> Record:
    """Return the record with what this command line says of how its nodes are reached."""
    given = around.settings
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


def stall_s(flag: str, around: Surroundings) -> float:
    """Return after how many seconds of silence a job is said to hang: by the flag `--stall`, else by the setting."""
    if not flag:
        return float(around.config["stall_s"])
    from torchfab import launch  # and with it the checks of a launch, for which a status has no use

    return launch.seconds("--stall", flag)

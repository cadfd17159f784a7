"""Ask for the status of a job, and describe how it ended."""

from __future__ import annotations

import re
import time

from torchfab import runtimes
from torchfab.core.format import duration
from torchfab.core.status import JobStatus
from torchfab.records import Record


def ask_status(record: Record) -> JobStatus:
    """Request the status of a job, and save it in its record.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    JobStatus
        The current status.
    """
    found: JobStatus = runtimes.load(record.runtime).status(record)
    record.remember(found.state, found.exit_code, found.has_ended)
    return found


def rank_flag(found: JobStatus) -> str:
    """Return the `--rank` flag for the logs of the rank that failed first.

    Parameters
    ----------
    found : JobStatus
        The status of the job.

    Returns
    -------
    str
        The flag with a leading space; empty if the rank is not known.
    """
    first = found.first_failure
    return f" --rank {first.rank}" if first and first.rank is not None else ""


def end_message(record: Record, status: JobStatus) -> str:
    """Describe how a job ended, with the commands for details.

    Parameters
    ----------
    record : Record
        The job.
    status : JobStatus
        Its status; it has ended.

    Returns
    -------
    str
        One line.
    """
    if status.state == "succeeded":
        ends = [process.ended - node.skew_s for node in status.nodes for process in node.processes if process.ended]
        seconds = max(ends, default=time.time()) - record.created
        return f"job {record.name} succeeded after {duration(seconds)}; its logs: fab logs {record.name}"
    if status.state == "stopped":
        return f"job {record.name} was stopped"
    next_commands = f"fab why {record.name} | fab logs {record.name}{rank_flag(status)}"
    failure, code = describe_failure(status), status.exit_code
    is_named = code is None or re.search(rf"exit code {code}\b", failure)
    parts = (f"job {record.name} failed: {failure}", "" if is_named else f"exit code {code}", next_commands)
    return "; ".join(filter(None, parts))


def describe_failure(job: JobStatus) -> str:
    """Describe why a job failed.

    Parameters
    ----------
    job : JobStatus
        Its status.

    Returns
    -------
    str
        The scheduler's reason, or the first failure.
    """
    if job.reason:
        return job.reason
    first = job.first_failure
    return str(first) if first else f"job is {job.state}"

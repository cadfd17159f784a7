"""The rank that failed first, as `fab why` finds it: for the commands that name it without the whole diagnosis."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torchfab import runtimes
from torchfab.core import status
from torchfab.core.errors import TorchfabError
from torchfab.core.status import JobStatus
from torchfab.records import Record

if TYPE_CHECKING:
    from torchfab.why.failures import Failure

_LONGEST = 160  # characters


def with_first_failure(record: Record, job: JobStatus) -> JobStatus:
    """Return the status of a failed job with the first failure that `fab why` names.

    The rank that ended first is often not the one that failed first: it only lost the other one. The logs show it, and
    they are asked for only once a job has failed.

    Parameters
    ----------
    record : Record
        The job.
    job : JobStatus
        Its status.

    Returns
    -------
    JobStatus
        Unchanged if the job has not failed, or if its logs do not name a rank.
    """
    if not job.has_failed or job.state == "stopped" or job.reason:
        return job
    from torchfab.why import diagnosis

    try:
        first = diagnosis.diagnose(runtimes.load(record.runtime).evidence(record)).first
    except TorchfabError:  # what is known by now is still worth printing
        return job
    if first is None or first.rank is None:
        return job
    return replace(job, diagnosed=status.Failure(first.time, first.host, first.rank, first.code or 0, how=_how(first)))


def _how(first: Failure) -> str:
    """Return how a rank failed, where its exit code does not show it."""
    if first.cause.name == "left-early":
        return "it ended with exit code 0 while others went on"
    if first.is_running:
        return f"{first.cause.words[:_LONGEST]}; it still runs"
    raised_before = first.traceback is not None and (first.code or 0) < 0
    return first.cause.words[:_LONGEST] if not first.code or raised_before else ""

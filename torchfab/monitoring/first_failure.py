"""Find the rank that failed first as `fab why` does, for commands that do not print the whole diagnosis."""

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

    The rank that ended first is often not the one that failed first: it may only have lost its connection to that one.
    The logs show this; they are requested only after a job has failed.

    Parameters
    ----------
    record : Record
        The job.
    job : JobStatus
        Its status.

    Returns
    -------
    JobStatus
        Unchanged if the job has not failed, or if its logs do not name a failure.
    """
    if not job.has_failed or job.state == "stopped" or job.reason:
        return job
    from torchfab.why import diagnosis

    try:
        found = diagnosis.diagnose(runtimes.load(record.runtime).evidence(record))
    except TorchfabError:  # the known status is still worth printing
        return job
    return replace(job, diagnosed=_failure(found.first, found.cause.words)) if found.first else job


def _failure(first: Failure, words: str) -> status.Failure:
    """Return a failure with the description of `fab why`, so that all commands describe it in the same words."""
    how = words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"
    how += "; it still runs" if first.is_running else ""
    if first.rank is None and not first.process:
        return status.Failure(first.time, first.host, None, first.code or 1, reason=how)
    return status.Failure(first.time, first.host, first.rank, first.code or 0, how=how, process=first.process)

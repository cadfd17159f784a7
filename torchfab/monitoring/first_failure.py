"""The rank that failed first, as `fab why` finds it: for the commands that name it without the whole diagnosis."""

from __future__ import annotations

from dataclasses import replace

from torchfab import runtimes
from torchfab.core import status
from torchfab.core.errors import TorchfabError
from torchfab.core.status import JobStatus
from torchfab.records import Record


def with_first_failure(record: Record, job: JobStatus) -> JobStatus:
    """Return the status of a failed job with the first failure that `fab why` names.

    The rank that ended first is often not the one that failed first: it only lost the other one. The logs tell, and
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
    how = ""
    if first.is_running:
        how = f"it still runs, and its log has: {first.cause.words[:160]}"
    elif not first.code:
        how = f"exit code {first.code}, and {first.cause.words[:160]}" if first.code == 0 else first.cause.words[:160]
    return replace(job, diagnosed=status.Failure(first.time, first.host, first.rank, first.code or 0, how=how))

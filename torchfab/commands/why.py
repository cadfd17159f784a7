"""`fab why`: print the cause of a job's end."""

from __future__ import annotations

from torchfab import documents
from torchfab.core.console import write_out
from torchfab.monitoring.job_diagnosis import diagnose_job
from torchfab.records import Record


def show_why(record: Record, as_json: bool) -> int:
    """Print the cause of a job's end.

    Parameters
    ----------
    record : Record
        The job.
    as_json : bool
        Print JSON.

    Returns
    -------
    int
        Exit code: 0 if every node answered, else 1.
    """
    from torchfab.why import report

    found = diagnose_job(record)
    write_out(documents.encode(report.as_json(found)) if as_json else report.render(found))
    return 1 if found.unreachable else 0

"""`fab why`: print the cause of a job's end."""

from __future__ import annotations

import json

from torchfab import runtimes
from torchfab.core.console import write_out
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
    from torchfab.why import diagnosis, report

    evidence = runtimes.load(record.runtime).evidence(record)
    record.remember(evidence.status.state, evidence.status.exit_code, evidence.status.has_ended)
    found = diagnosis.diagnose(evidence)
    write_out(json.dumps(report.as_json(found), indent=2) if as_json else report.render(found))
    return 1 if found.unreachable else 0

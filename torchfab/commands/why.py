"""`fab why`: why a job ended as it did."""

from __future__ import annotations

import json

from torchfab import runtimes
from torchfab.core.console import write_out
from torchfab.records import Record


def show_why(record: Record, as_json: bool) -> int:
    """Print why a job ended as it did; return 0 if every node could be asked, else 1."""
    from torchfab.why import diagnosis, report

    found = runtimes.load(record.runtime).evidence(record)
    record.remember(found.status.state, found.status.exit_code, found.status.has_ended)
    told = diagnosis.diagnose(found)
    write_out(json.dumps(report.as_json(told), indent=2) if as_json else report.text(told))
    return 1 if told.silent else 0

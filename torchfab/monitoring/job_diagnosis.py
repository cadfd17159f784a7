"""Ask the nodes of a job why it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchfab import runtimes
from torchfab.records import Record

if TYPE_CHECKING:
    from torchfab.why.diagnosis import Diagnosis


def diagnose_job(record: Record) -> Diagnosis:
    """Collect the evidence of a job from its nodes, save its status in its record, and diagnose it.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    Diagnosis
        Why it ended, or its current state.
    """
    from torchfab.why import diagnosis

    evidence = runtimes.load(record.runtime).evidence(record)
    record.remember(evidence.status.state, evidence.status.exit_code, evidence.status.has_ended)
    return diagnosis.diagnose(evidence)

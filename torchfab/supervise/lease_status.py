"""Whether a job is supervised, by whom, and in which attempt it is, for `fab status`."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from torchfab.core.console import write_err
from torchfab.core.errors import JobNameError
from torchfab.records import Record, Records
from torchfab.supervise import lease


def as_json(record: Record) -> dict[str, Any]:
    """Return it for machines; `supervisor` is null where nobody supervises it."""
    folder = record.folder
    return {"attempt": record.attempt, "supervisor": lease.holder(folder), "supervised": lease.was_supervised(folder)}


def words(record: Record, state: str) -> str:
    """Return it for people; empty for a job that never was supervised.

    Parameters
    ----------
    state : str
        The job's.
    """
    if not lease.was_supervised(record.folder):
        return ""
    held, history = lease.holder(record.folder), f"what happened: fab jobs --events {record.name}"
    if held is not None:
        return f"attempt {record.attempt}, supervised by {lease.words(held)}; {history}"
    if state in ("succeeded", "stopped"):
        return f"attempt {record.attempt}; {history}"
    return f"attempt {record.attempt}; nobody supervises it any more: fab supervise {record.name}"


def next_attempt(record: Record) -> Record | None:
    """Wait until a job's supervisor has launched it again; None where it does not, or nobody supervises it."""
    told = False
    while True:
        held = lease.holder(record.folder)
        try:
            current = Records(record.folder.parent).get(record.name)
        except JobNameError:  # somebody removed it while it was watched
            return None
        if current.job_id != record.job_id:
            return replace(current, settings=record.settings)
        if held is None or lease.stop_asked(record.folder):
            return None
        if not told:
            told = True
            write_err(
                f"{record.name}: its supervisor (pid {held.get('pid', '?')}) decides whether it is launched again"
            )
        time.sleep(0.5)

"""The supervisor of a job, for `fab status` and `fab logs --follow`."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace
from typing import Any

from torchfab.core.console import write_err
from torchfab.core.errors import JobNameError
from torchfab.records import Record, Records
from torchfab.supervise import job_locks


def as_json(record: Record) -> dict[str, Any]:
    """Return the attempt and its supervisor as a JSON object.

    Parameters
    ----------
    record : Record
        The current attempt.

    Returns
    -------
    dict
        `attempt`, `supervisor` (null if there is none now), `supervised` (whether there ever was one).
    """
    folder = record.folder
    return {
        "attempt": record.attempt,
        "supervisor": job_locks.holder(folder),
        "supervised": job_locks.was_supervised(folder),
    }


def describe(record: Record, state: str) -> str:
    """Describe the attempt and its supervisor.

    Parameters
    ----------
    record : Record
        The current attempt.
    state : str
        The job's state.

    Returns
    -------
    str
        One line. Empty for a job that was never supervised.
    """
    if not job_locks.was_supervised(record.folder):
        return ""
    held, history = job_locks.holder(record.folder), f"for its events: fab jobs --events {record.name}"
    if held is not None:
        return f"attempt {record.attempt}, supervised by {job_locks.describe(held)}; {history}"
    if state in ("succeeded", "stopped"):
        return f"attempt {record.attempt}; {history}"
    return f"attempt {record.attempt}; its supervisor has ended; to resume: fab supervise {record.name}"


def next_attempt(record: Record) -> Generator[None, None, Record | None]:
    """Wait until the supervisor of an ended attempt has launched the next one: `found = yield from next_attempt(...)`.

    Parameters
    ----------
    record : Record
        The attempt that ended.

    Yields
    ------
    None
        Every half second while the supervisor has not decided.

    Returns
    -------
    Record or None
        The next attempt. None if there will be none: the job has no supervisor, was stopped, or was removed.
    """
    announced = False
    while True:
        held = job_locks.holder(record.folder)
        try:
            current = Records(record.folder.parent).get(record.name)
        except JobNameError:  # the record was removed meanwhile
            return None
        if current.job_id != record.job_id:
            return replace(current, settings=record.settings)
        if held is None or job_locks.stop_requested(record.folder):
            return None
        if not announced:
            announced = True
            write_err(f"{record.name}: its supervisor (pid {held.get('pid', '?')}) is deciding whether to relaunch it")
        time.sleep(0.5)
        yield

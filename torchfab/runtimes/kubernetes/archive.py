"""Archive of a job whose Kubernetes objects are deleted: its last status and its logs, in its record's folder.

The cluster deletes pods and their logs with the Job. `fab status` and `fab logs` then read this archive.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torchfab.records import Record
from torchfab.runtimes.kubernetes.status import JobSnapshot

_END, _GONE = "kubernetes.json", "kubernetes.gone"
_BLOCK = 65536


def save(record: Record, snapshot: JobSnapshot) -> None:
    """Save the state of a job's objects, unless it is already saved.

    Parameters
    ----------
    record : Record
        The job.
    snapshot : JobSnapshot
        The state to save.
    """
    path = record.folder / _END
    if not path.exists():
        _write(path, [json.dumps({**vars(snapshot), "stopped": snapshot.now}).encode()])


def load(record: Record) -> tuple[JobSnapshot, float] | None:
    """Load the state of a job's objects at the time it was stopped.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    tuple of JobSnapshot and float, optional
        The state, and when the job was stopped, in seconds since the epoch; None if nothing is saved.
    """
    try:
        values = json.loads((record.folder / _END).read_text())
        when = float(values.pop("stopped"))
        return JobSnapshot(**values), when
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def is_gone(record: Record) -> bool:
    """Return whether the cluster is known to hold no object of the job.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    bool
        True after `mark_gone`.
    """
    return (record.folder / _GONE).exists()


def mark_gone(record: Record) -> None:
    """Record that the cluster holds no object of the job.

    Parameters
    ----------
    record : Record
        The job.
    """
    _write(record.folder / _GONE, [])


def save_log(record: Record, pod: str, blocks: Iterable[bytes]) -> None:
    """Save the log of a pod.

    Parameters
    ----------
    record : Record
        The job.
    pod : str
        Name of the pod.
    blocks : iterable of bytes
        The log as the cluster returns it.
    """
    (record.folder / "logs").mkdir(mode=0o700, exist_ok=True)
    _write(_log_path(record, pod), blocks)


def load_log(record: Record, pod: str) -> Iterator[bytes] | None:
    """Load the saved log of a pod.

    Parameters
    ----------
    record : Record
        The job.
    pod : str
        Name of the pod.

    Returns
    -------
    iterator of bytes, optional
        The log in blocks; None if it is not saved.
    """
    path = _log_path(record, pod)
    return _blocks(path) if path.exists() else None


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _log_path(record: Record, pod: str) -> Path:
    return record.folder / "logs" / f"{os.path.basename(pod)}.log"


def _write(path: Path, blocks: Iterable[Any]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        for block in blocks:
            file.write(block)

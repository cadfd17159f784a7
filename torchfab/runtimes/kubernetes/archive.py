"""What is kept of a job whose objects are deleted: how it was, and its logs, in its record's folder.

The cluster forgets a pod and its log with the Job; `fab status` and `fab logs` go on answering.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torchfab.records import Record
from torchfab.runtimes.kubernetes.status import Seen

_END, _GONE = "kubernetes.json", "kubernetes.gone"
_BLOCK = 65536


def keep(record: Record, seen: Seen) -> None:
    """Keep how the job is, unless that was done before; what cannot be written is not worth failing for."""
    path = record.folder / _END
    if not path.exists():
        _write(path, [json.dumps({**vars(seen), "stopped": seen.now}).encode()])


def was_kept(record: Record) -> tuple[Seen, float] | None:
    """Return how the job was when it was stopped, and when; None if it was not."""
    try:
        values = json.loads((record.folder / _END).read_text())
        when = float(values.pop("stopped"))
        return Seen(**values), when
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def is_gone(record: Record) -> bool:
    """Say whether it was proved that the cluster holds nothing of the job any more."""
    return (record.folder / _GONE).exists()


def note_gone(record: Record) -> None:
    """Note that the cluster holds nothing of the job any more."""
    _write(record.folder / _GONE, [])


def keep_log(record: Record, pod: str, blocks: Iterable[bytes]) -> None:
    """Keep the log of a pod, as the cluster tells it."""
    (record.folder / "logs").mkdir(mode=0o700, exist_ok=True)
    _write(_log(record, pod), blocks)


def kept_log(record: Record, pod: str) -> Iterator[bytes] | None:
    """Return the kept log of a pod in blocks; None when there is none."""
    path = _log(record, pod)
    return _blocks(path) if path.exists() else None


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _log(record: Record, pod: str) -> Path:
    return record.folder / "logs" / f"{os.path.basename(pod)}.log"


def _write(path: Path, blocks: Iterable[Any]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        for block in blocks:
            file.write(block)

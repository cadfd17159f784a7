"""The files of a record: private, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torchfab.core.errors import TorchfabError


def write(path: Path, value: Any) -> None:
    """Write a value as JSON, on to the disk, in the place of what is there."""
    beside = path.with_name(path.name + ".new")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def cannot_write(folder: Path, error: OSError) -> TorchfabError:
    """Return what to say of a folder that cannot be written."""
    return TorchfabError(
        f"cannot write {folder}: {error.strerror}", "free space or rights there, or set torchfab.records"
    )

"""Replace a JSON file atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torchfab.core.errors import TorchfabError


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON and replace the file atomically.

    The file is private (mode 0600) and is synced to disk. A reader sees the old contents or the new, never a part.

    Parameters
    ----------
    path : Path
        The file. Its folder must exist. `<path>.new` beside it is the temporary file.
    value : any JSON value
        What to write.

    Raises
    ------
    TorchfabError
        The file cannot be written.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> TorchfabError:
    """Build the error for a file or folder of the records that cannot be written.

    Parameters
    ----------
    path : Path
        The file or folder.
    error : OSError
        The cause.

    Returns
    -------
    TorchfabError
        To be raised by the caller.
    """
    return TorchfabError(
        f"cannot write {path}: {error.strerror}", "free disk space, or check permissions, or set torchfab.records"
    )

"""A marker file: a node that finds it shares the directory with the launch machine."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = ".torchfab-sync-"


@contextmanager
def marker_file(source: str, token: str) -> Iterator[str]:
    """Create a marker file, and remove it on exit. Markers that killed processes left behind are removed, too.

    Parameters
    ----------
    source : str
        The directory.
    token : str
        A random text.

    Yields
    ------
    str
        Name of the file.

    Raises
    ------
    OSError
        The file cannot be created.
    """
    path = Path(source, f"{PREFIX}{token}")
    marker = _create(path)
    try:
        yield path.name
    finally:
        path.unlink(missing_ok=True)
        os.close(marker)


def _create(path: Path) -> int:
    """Create a file that is locked while this process lives; return its descriptor."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks: markers of killed processes stay
            fcntl.flock(folder, fcntl.LOCK_EX)  # until ours is locked
            _remove_unlocked(path.parent)
        marker = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(marker, os.fsencode(socket.gethostname()))
        with suppress(OSError):
            fcntl.flock(marker, fcntl.LOCK_EX)
        return marker
    finally:
        os.close(folder)


def _remove_unlocked(folder: Path) -> None:
    """Remove the markers of processes of this machine that have ended."""
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):  # locked, or removed meanwhile
            marker = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if os.read(marker, 256) == os.fsencode(socket.gethostname()):  # other machines may not see our locks
                    fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            finally:
                os.close(marker)

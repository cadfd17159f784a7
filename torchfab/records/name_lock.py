"""The lock on a job's name while the job is launched: `launching` in its folder, held by the launching `fab`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import time
from pathlib import Path
from typing import ClassVar

_LOCK = "launching"
_ABANDONED_S = 600.0  # newer folders may belong to a launch that is about to lock them


class NameLock:
    """Claims job names under a folder of records.

    Parameters
    ----------
    root : Path
        The folder that holds one folder per job.
    """

    # File descriptors of the locks that this process holds, by job name.
    _locks: ClassVar[dict[str, int]] = {}

    def __init__(self, root: Path) -> None:
        self.root = root

    def acquire(self, name: str) -> bool:
        """Make the folder of a job and lock it.

        Parameters
        ----------
        name : str
            The job's name.

        Returns
        -------
        bool
            Whether the name was free.

        Raises
        ------
        OSError
            The folder cannot be written.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove_abandoned()
        return self._acquire(self.root / name)

    def _remove_abandoned(self) -> None:
        """Remove the folders of launches that were killed before they wrote a record."""
        for path in self.root.glob(f"*/{_LOCK}"):
            with contextlib.suppress(OSError):  # the launch is alive, or another process removed the folder first
                if (path.parent / "record.json").exists() or time.time() - path.stat().st_mtime < _ABANDONED_S:
                    continue
                with path.open() as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _delete(path.parent)

    def _acquire(self, folder: Path) -> bool:
        """Make and lock the folder of a job, or take over the folder of a launch that was killed before its record."""
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            if (folder / "record.json").exists() or not folder.is_dir():
                return False
        try:
            fd = os.open(folder / _LOCK, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except FileNotFoundError:  # another process has just removed the folder
            return self._acquire(folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        except OSError:  # a file system without locks
            pass
        if os.fstat(fd).st_nlink == 0:  # another process removed the folder before it released the lock
            os.close(fd)
            return self._acquire(folder)
        self._locks[folder.name] = fd  # held until the launch is over or this process exits, for whatever reason
        try:
            os.write(fd, f"{os.getpid()} {socket.gethostname()}\n".encode())
        except OSError:  # a full disk
            if not (folder / "record.json").exists():
                self.remove(folder.name)
            raise
        return not (folder / "record.json").exists()

    def unlock(self, name: str) -> None:
        """Release the lock after a launch, successful or not. Without a lock, do nothing.

        Parameters
        ----------
        name : str
            The job's name.
        """
        if name in self._locks:
            os.close(self._locks.pop(name))

    def holder(self, name: str) -> tuple[int, str] | None:
        """Find the `fab` process that is launching a job at this moment.

        Parameters
        ----------
        name : str
            The job's name.

        Returns
        -------
        tuple of int and str, or None
            Its pid and its host name. None if the job is not being launched.
        """
        try:
            with (self.root / name / _LOCK).open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    pid, host = file.read().splitlines()[-1].split()
                    return int(pid), host
        except (OSError, ValueError, IndexError):
            pass
        return None

    def remove(self, name: str) -> None:
        """Remove the folder of a job and free its name. No process of the job may run.

        Parameters
        ----------
        name : str
            The job's name.
        """
        _delete(self.root / name)
        self.unlock(name)


def _delete(folder: Path) -> None:
    """Delete a job's folder, the lock last: a `fab stop` that finds the lock free must not find the record."""
    others = [path for path in folder.glob("*") if path.name != _LOCK]
    for path in [*others, folder / _LOCK]:
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # it was a folder
            path.unlink()
    with contextlib.suppress(OSError):  # another launch has taken the name since
        folder.rmdir()

"""Who launches a job at this moment: a lock on `launching` in its folder, which claims the name."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import time
from pathlib import Path
from typing import ClassVar

_DEAD_S = 600.0  # the claim of a launch that has ended so long ago is not one that is about to be locked


class Claims:
    """The names that are taken under a folder of records.

    Parameters
    ----------
    root : Path
        The folder that holds one folder per job.
    """

    # Locks on the folders of jobs that this process launches, by name.
    _locks: ClassVar[dict[str, int]] = {}

    def __init__(self, root: Path) -> None:
        self.root = root

    def take(self, name: str) -> bool:
        """Make the folder of a job and lock it; return whether the name was free.

        Raises
        ------
        OSError
            The folder cannot be written.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._forget_dead()
        return self._take(self.root / name)

    def _forget_dead(self) -> None:
        """Remove what launches have left that were killed before they had written down their job."""
        for path in self.root.glob("*/launching"):
            with contextlib.suppress(OSError):  # it lives, or another one was faster
                if (path.parent / "record.json").exists() or time.time() - path.stat().st_mtime < _DEAD_S:
                    continue
                with path.open() as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path.parent, ignore_errors=True)

    def _take(self, folder: Path) -> bool:
        """Make the folder of a job and lock it, or take over that of a launch that was killed before it had begun."""
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            if (folder / "record.json").exists() or not folder.is_dir():
                return False
        handle = os.open(folder / "launching", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        except OSError:  # a file system without locks
            pass
        self._locks[folder.name] = handle  # until the launch is done, or this process ends, however it ends
        try:
            os.write(handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
        except OSError:  # a full disk
            if not (folder / "record.json").exists():
                self.release(folder.name)
            raise
        return not (folder / "record.json").exists()

    def done(self, name: str) -> None:
        """Note that a launch is done, however it went."""
        if name in self._locks:
            os.close(self._locks.pop(name))

    def holder(self, name: str) -> tuple[int, str] | None:
        """Return the pid of the `fab` that is launching a job at this moment, and its machine; None when none is."""
        try:
            with (self.root / name / "launching").open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    pid, host = file.read().splitlines()[-1].split()
                    return int(pid), host
        except (OSError, ValueError, IndexError):
            pass
        return None

    def release(self, name: str) -> None:
        """Give a name back: nothing of the job runs or will run."""
        self.done(name)
        shutil.rmtree(self.root / name, ignore_errors=True)

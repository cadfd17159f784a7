"""Locks in a job's folder: at most one supervisor per job, and `fab stop` takes precedence over a relaunch.

jobs/<name>/
    supervisor      locked by the supervisor for its lifetime; holds its pid, start time and tmux session
    relaunching     locked during a relaunch; `fab stop` waits for it, and then stops what was launched
    stop-asked      exists once `fab stop` was run: no further relaunch
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchfab.core.console import write_err
from torchfab.core.errors import TorchfabError, UsageError

_SUPERVISOR, _RELAUNCH, _STOP = "supervisor", "relaunching", "stop-asked"
_TIMEOUT_S = 600.0
_ANNOUNCE_S = 1.0  # shorter waits are silent


class SupervisorLock:
    """The exclusive right to supervise a job, held until `release` or the end of this process.

    Parameters
    ----------
    folder : Path
        The job's folder.
    where : str
        The tmux session of this supervisor. Empty: none.

    Raises
    ------
    UsageError
        The job has another supervisor.
    TorchfabError
        The lock file cannot be written.
    """

    def __init__(self, folder: Path, where: str = "") -> None:
        self.folder = folder
        self.fd = _open(folder / _SUPERVISOR)
        if not _lock_within_1_s(self.fd):
            os.close(self.fd)
            raise _already_supervised(folder, holder(folder) or {})
        text = json.dumps({"pid": os.getpid(), "since": time.time(), "where": where})
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, text.encode(), 0)

    def release(self) -> None:
        """Release the lock."""
        os.ftruncate(self.fd, 0)
        os.close(self.fd)


def _already_supervised(folder: Path, held: dict[str, Any]) -> UsageError:
    return UsageError(
        f"job {folder.name} already has a supervisor: {describe(held)}",
        f"for its events: fab jobs --events {folder.name}; to end the job: fab stop {folder.name}",
    )


def check_free(folder: Path) -> None:
    """Check that a job has no supervisor.

    Parameters
    ----------
    folder : Path
        The job's folder.

    Raises
    ------
    UsageError
        The job has a supervisor.
    """
    if (held := holder(folder)) is not None:
        raise _already_supervised(folder, held)


def holder(folder: Path) -> dict[str, Any] | None:
    """Read which process supervises a job.

    Parameters
    ----------
    folder : Path
        The job's folder.

    Returns
    -------
    dict or None
        `pid`, `since` (seconds since the epoch) and `where` (tmux session); empty if the file cannot be read. None if
        there is no supervisor.
    """
    try:
        fd = os.open(folder / _SUPERVISOR, os.O_RDWR)
    except OSError:
        return None
    try:
        if _try_lock(fd, fcntl.LOCK_SH):
            return None
        return dict(json.loads((folder / _SUPERVISOR).read_text() or "{}"))
    except (OSError, ValueError, TypeError):
        return {}
    finally:
        os.close(fd)


def was_supervised(folder: Path) -> bool:
    """Test whether a job has or had a supervisor.

    Parameters
    ----------
    folder : Path
        The job's folder.

    Returns
    -------
    bool
        Whether its lock file exists.
    """
    return (folder / _SUPERVISOR).exists()


def describe(held: dict[str, Any]) -> str:
    """Describe a supervisor.

    Parameters
    ----------
    held : dict
        As returned by `holder`.

    Returns
    -------
    str
        `pid 4711 since 2026-01-31 12:00:00, in tmux: supervise-gpt2`.
    """
    since = held.get("since")
    when = time.strftime(" since %Y-%m-%d %H:%M:%S", time.localtime(since)) if isinstance(since, int | float) else ""
    where = f", in tmux: {held['where']}" if held.get("where") else ""
    return f"pid {held.get('pid', '?')}{when}{where}"


# ---- precedence of fab stop


def stop_requested(folder: Path) -> bool:
    """Test whether `fab stop` was run for the job.

    Parameters
    ----------
    folder : Path
        The job's folder.

    Returns
    -------
    bool
        Whether the job must not be launched again.
    """
    return (folder / _STOP).exists()


@contextlib.contextmanager
def stopping(folder: Path) -> Iterator[None]:
    """Request the stop of a job, and wait for a relaunch in progress. No relaunch starts inside the block or later.

    Parameters
    ----------
    folder : Path
        The job's folder.

    Yields
    ------
    None
        Once no relaunch is in progress.

    Raises
    ------
    TorchfabError
        The request cannot be written while a supervisor may relaunch the job, or a relaunch takes more than 600 s.
    """
    try:
        os.close(_open(folder / _STOP))
        fd = _open(folder / _RELAUNCH)
    except TorchfabError as error:
        held = holder(folder)
        if held is None:  # without a supervisor there is no relaunch
            yield
            return
        raise TorchfabError(
            f"the stop request cannot reach its supervisor: {error.message}",
            f"end it first: kill {held.get('pid', '')}, then stop",
        ) from None
    try:
        _wait_for_lock(fd, fcntl.LOCK_SH, folder.name)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def restarting(folder: Path) -> Iterator[None]:
    """Make `fab stop` wait during a relaunch. Inside the block, `stop_asked` shows a stop that was requested before.

    Parameters
    ----------
    folder : Path
        The job's folder.

    Yields
    ------
    None
        Once no `fab stop` is in progress.

    Raises
    ------
    TorchfabError
        The lock file cannot be written, or `fab stop` takes more than 600 s.
    """
    fd = _open(folder / _RELAUNCH)
    try:
        _wait_for_lock(fd, fcntl.LOCK_EX, folder.name)
        yield
    finally:
        os.close(fd)


def _wait_for_lock(fd: int, operation: int, name: str) -> None:
    begun, announced = time.monotonic(), False
    while not _try_lock(fd, operation):
        waited = time.monotonic() - begun
        if waited > _TIMEOUT_S:
            raise TorchfabError(
                f"job {name} has been launching or stopping for {waited:.0f} s", "see fab jobs --events"
            )
        if waited > _ANNOUNCE_S and not announced:
            announced = True
            write_err(f"{name}: a launch or stop of this job is in progress; waiting for it")
        time.sleep(0.05)


def _lock_within_1_s(fd: int) -> bool:
    """Take an exclusive lock. Retry, because `holder` in another process holds a shared lock for a moment."""
    deadline = time.monotonic() + 1.0
    while not _try_lock(fd, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _try_lock(fd: int, operation: int) -> bool:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise TorchfabError(f"cannot write {path}: {error.strerror}", "free disk space, or check permissions") from None

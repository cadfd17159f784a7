"""Who may act on a job: one supervisor at a time, and `fab stop` before any restart.

jobs/<name>/
    supervisor      locked by the supervisor for as long as it lives; who it is stands in it
    relaunching     locked while the job is launched again; `fab stop` waits for that, so that it stops what was started
    stop-asked      somebody said `fab stop`: no restart any more
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
_PATIENCE_S = 600.0
_QUIET_S = 1.0


class SupervisorLease:
    """The right to supervise a job, held until `release` or the end of this process.

    Raises
    ------
    UsageError
        Somebody else has it.
    """

    def __init__(self, folder: Path, where: str = "") -> None:
        self.folder = folder
        self.handle = _open(folder / _SUPERVISOR)
        if not _lock_soon(self.handle):
            os.close(self.handle)
            raise _taken(folder, holder(folder) or {})
        text = json.dumps({"pid": os.getpid(), "since": time.time(), "where": where})
        os.ftruncate(self.handle, 0)
        os.pwrite(self.handle, text.encode(), 0)

    def release(self) -> None:
        """Give it back."""
        os.ftruncate(self.handle, 0)
        os.close(self.handle)


def _taken(folder: Path, held: dict[str, Any]) -> UsageError:
    return UsageError(
        f"job {folder.name} has a supervisor already: {words(held)}",
        f"see what it did: fab jobs --events {folder.name}; to end the job: fab stop {folder.name}",
    )


def check_free(folder: Path) -> None:
    """Raise UsageError if somebody supervises a job."""
    if (held := holder(folder)) is not None:
        raise _taken(folder, held)


def holder(folder: Path) -> dict[str, Any] | None:
    """Return who supervises a job (pid, since, where); None where nobody does."""
    try:
        handle = os.open(folder / _SUPERVISOR, os.O_RDWR)
    except OSError:
        return None
    try:
        if _try_lock(handle, fcntl.LOCK_SH):
            return None
        return dict(json.loads((folder / _SUPERVISOR).read_text() or "{}"))
    except (OSError, ValueError, TypeError):
        return {}
    finally:
        os.close(handle)


def was_supervised(folder: Path) -> bool:
    """Say whether the job has, or had, a supervisor."""
    return (folder / _SUPERVISOR).exists()


def words(held: dict[str, Any]) -> str:
    """Return who supervises, for people."""
    since = held.get("since")
    when = time.strftime(" since %Y-%m-%d %H:%M:%S", time.localtime(since)) if isinstance(since, int | float) else ""
    where = f", in tmux: {held['where']}" if held.get("where") else ""
    return f"pid {held.get('pid', '?')}{when}{where}"


# ---- stop wins


def stop_asked(folder: Path) -> bool:
    """Say whether somebody has asked to stop the job."""
    return (folder / _STOP).exists()


@contextlib.contextmanager
def stopping(folder: Path) -> Iterator[None]:
    """Say that the job is to be stopped, and wait until no restart of it is under way; none begins within, or later.

    Raises
    ------
    TorchfabError
        That cannot be written, and a supervisor would launch it again; or a restart does not end.
    """
    try:
        os.close(_open(folder / _STOP))
        handle = _open(folder / _RELAUNCH)
    except TorchfabError as error:
        held = holder(folder)
        if held is None:  # nobody will restart it
            yield
            return
        raise TorchfabError(
            f"its supervisor cannot be told: {error.message}", f"end it first: kill {held.get('pid', '')}, then stop"
        ) from None
    try:
        _wait_for(handle, fcntl.LOCK_SH, folder.name)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def restarting(folder: Path) -> Iterator[None]:
    """Hold off `fab stop` while the job is launched again; what it asked for before is seen by `stop_asked` within."""
    handle = _open(folder / _RELAUNCH)
    try:
        _wait_for(handle, fcntl.LOCK_EX, folder.name)
        yield
    finally:
        os.close(handle)


def _wait_for(handle: int, kind: int, name: str) -> None:
    begun, told = time.monotonic(), False
    while not _try_lock(handle, kind):
        waited = time.monotonic() - begun
        if waited > _PATIENCE_S:
            raise TorchfabError(f"job {name} is being launched or stopped for {waited:.0f} s", "see fab jobs --events")
        if waited > _QUIET_S and not told:
            told = True
            write_err(f"{name}: it is being launched or stopped just now; waits until that is done")
        time.sleep(0.05)


def _lock_soon(handle: int) -> bool:
    """Lock it; who only looks whether it is locked holds it for a moment."""
    deadline = time.monotonic() + 1.0
    while not _try_lock(handle, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _try_lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise TorchfabError(f"cannot write {path}: {error.strerror}", "free space or rights there") from None

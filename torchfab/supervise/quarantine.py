"""The lemons: nodes that were lost or sick, and are left out of supervised launches until they are forgiven."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torchfab.core.errors import TorchfabError

FILE = "lemons.json"
_END_OF_TIME = 1e11  # seconds since the epoch: no clock shows it


@dataclass(frozen=True)
class Lemon:
    """Why a node is left out, since when (seconds since the epoch), and which job found out."""

    reason: str
    time: float
    job: str


def _lemon(told: Mapping[str, object]) -> Lemon:
    when = float(str(told["time"]))
    if not 0 <= when < _END_OF_TIME:
        raise ValueError(f"{when} is no time")
    return Lemon(str(told["reason"]), when, str(told["job"]))


class Quarantine:
    """The list of this launch machine, beside the records of its jobs.

    Parameters
    ----------
    root : Path
        The folder of the records.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / FILE

    def all(self) -> dict[str, Lemon]:
        """Return the lemons by their hosts' labels, the latest last.

        Raises
        ------
        TorchfabError
            The file cannot be read, or is not torchfab's.
        """
        try:
            found = json.loads(self.path.read_text())
            lemons = {host: _lemon(each) for host, each in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise TorchfabError(
                f"{self.path} cannot be read as the list of lemons: {error!r}", "move it away"
            ) from None
        return dict(sorted(lemons.items(), key=lambda item: item[1].time))

    def add(self, found: Mapping[str, Lemon]) -> None:
        """Add nodes to the list, or renew their reasons."""
        with self._locked():
            self._write({**self.all(), **found})

    def forgive(self, host: str) -> list[str]:
        """Take a node off the list, or `all` of them; return whom."""
        with self._locked():
            known = self.all()
            gone = list(known) if host == "all" else [each for each in known if each == host]
            self._write({each: lemon for each, lemon in known.items() if each not in gone})
            return gone

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.path.with_suffix(".lock"), os.O_WRONLY | os.O_CREAT, 0o600)
        except OSError as error:
            raise TorchfabError(f"cannot write {self.path}: {error.strerror}", "free space or rights there") from None
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _write(self, lemons: Mapping[str, Lemon]) -> None:
        beside = self.path.with_suffix(".new")
        try:
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w") as file:
                json.dump({host: asdict(lemon) for host, lemon in lemons.items()}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.path)
        except OSError as error:
            raise TorchfabError(f"cannot write {self.path}: {error.strerror}", "free space or rights there") from None

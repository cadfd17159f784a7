"""The quarantine list: lemon nodes, which supervised launches leave out until they are forgiven.

A lemon node is one that was lost or sick in a job (the term of Meta's paper on the reliability of its clusters).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from torchfab.core.errors import TorchfabError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.records import atomic

FILE = "lemons.json"
_LATEST_TIME = 1e11  # seconds since the epoch; larger values are corrupt


@dataclass(frozen=True)
class Lemon:
    """Why a node is left out.

    Parameters
    ----------
    reason : str
        What is wrong with it.
    time : float
        Since when, in seconds since the epoch.
    job : str
        The job in which that was detected.
    """

    reason: str
    time: float
    job: str


def _parse_lemon(values: Mapping[str, object]) -> Lemon:
    time = float(str(values["time"]))
    if not 0 <= time < _LATEST_TIME:
        raise ValueError(f"{time} is not a time")
    return Lemon(str(values["reason"]), time, str(values["job"]))


class Quarantine:
    """The quarantine list of this launch machine, beside the records of its jobs.

    Parameters
    ----------
    root : Path
        The folder of the records.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / FILE

    def all(self) -> dict[str, Lemon]:
        """Read the list.

        Returns
        -------
        dict of str to Lemon
            By host label, the latest last.

        Raises
        ------
        TorchfabError
            The file cannot be read, or is not a quarantine list.
        """
        try:
            document = json.loads(self.path.read_text())
            lemons = {host: _parse_lemon(values) for host, values in document.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise TorchfabError(
                f"{self.path} cannot be read as the list of lemons: {error!r}", "move it away"
            ) from None
        return dict(sorted(lemons.items(), key=lambda item: item[1].time))

    def add(self, lemons: Mapping[str, Lemon]) -> None:
        """Add nodes to the list, or replace their entries.

        Parameters
        ----------
        lemons : Mapping of str to Lemon
            By host label.

        Raises
        ------
        TorchfabError
            The file cannot be read or written.
        """
        with self._locked():
            self._write({**self.all(), **lemons})

    def forgive(self, host: str) -> list[str]:
        """Remove a node from the list.

        Parameters
        ----------
        host : str
            The host's label, or `all`.

        Returns
        -------
        list of str
            The hosts that were removed.

        Raises
        ------
        TorchfabError
            The file cannot be read or written.
        """
        with self._locked():
            lemons = self.all()
            removed = list(lemons) if host == "all" else [each for each in lemons if each == host]
            self._write({each: lemon for each, lemon in lemons.items() if each not in removed})
            return removed

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path.with_suffix(".lock"), os.O_WRONLY | os.O_CREAT, 0o600)
        except OSError as error:
            raise atomic.cannot_write(self.path, error) from None
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _write(self, lemons: Mapping[str, Lemon]) -> None:
        atomic.write_json(self.path, {host: asdict(lemon) for host, lemon in lemons.items()})

"""Shared by launches on nodes and through a scheduler: claim the job's name, print the result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torchfab.core.console import write_out
from torchfab.core.errors import JobNameError, TorchfabError
from torchfab.launching.interrupts import StopOnSignal
from torchfab.records import Records

_MOST_SUFFIXES = 100


def names_to_try(name: str, now: float) -> tuple[str, ...]:
    """Return the names that a launch may take: two launches in one second have the same default name.

    Parameters
    ----------
    name : str
        The job's name.
    now : float
        When the command started, in seconds since the epoch.

    Returns
    -------
    tuple of str
        The name; if it ends with that time, also with the suffixes -2, -3 and so on.
    """
    is_given = not name.endswith(time_stamp(now))
    return (name,) if is_given else (name, *(f"{name}-{number}" for number in range(2, _MOST_SUFFIXES)))


def time_stamp(now: float) -> str:
    """Return the last part of a default job name.

    Parameters
    ----------
    now : float
        When the command started, in seconds since the epoch.

    Returns
    -------
    str
        Date and time: `1129-154100`.
    """
    return time.strftime("%m%d-%H%M%S", time.localtime(now))


def _claim(records: Records, names: Sequence[str]) -> Path:
    for name in names[:-1]:
        try:
            return records.claim(name)
        except JobNameError:
            continue
    return records.claim(names[-1])


@contextmanager
def claimed_name(records: Records, *names: str) -> Iterator[Path]:
    """Hold a job's name during its launch. A failed launch releases the name, unless processes of the job may run.

    `fab stop` interrupts the launch inside the block.

    Parameters
    ----------
    records : Records
        The records of launched jobs.
    *names : str
        The job's name, and alternatives if it is taken.

    Yields
    ------
    Path
        The folder of the job's record, which has the name.

    Raises
    ------
    JobNameError
        There is a job of this name.
    """
    folder = _claim(records, names)
    name = folder.name
    try:
        with StopOnSignal():
            yield folder
    except BaseException as error:
        uncertain = isinstance(error, TorchfabError) and error.uncertain_hosts
        if not uncertain and not has_started(records, name):  # else `fab stop` must find the job
            records.release(name)
        raise


def has_started(records: Records, name: str) -> bool:
    """Return whether a job has started, according to its record.

    Parameters
    ----------
    records : Records
        The records of launched jobs.
    name : str
        The job's name.

    Returns
    -------
    bool
        False if there is no record.
    """
    try:
        return any(event["event"] == "started" for event in records.get(name).events())
    except TorchfabError:
        return False


def announce(name: str, outcome: str, shown: Mapping[str, str], commands: Sequence[str]) -> None:
    """Print the launched job, and the commands to use next.

    Parameters
    ----------
    name : str
        The job's name.
    outcome : str
        Its size and result.
    shown : Mapping of str to str
        Texts by label: the values of flags and defaults.
    commands : sequence of str
        Commands of fab that take the job's name.
    """
    write_out(f"job {name}: {outcome}")
    for key, value in shown.items():
        write_out(f"  {key:8} {value}")
    write_out("next: " + " | ".join(f"fab {command} {name}" for command in commands))

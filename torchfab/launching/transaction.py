"""Shared by launches on nodes and through a scheduler: claim the job's name, print the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torchfab.core.console import write_out
from torchfab.core.errors import TorchfabError
from torchfab.launching.interrupts import StopOnSignal
from torchfab.records import Records


@contextmanager
def claimed_name(records: Records, name: str) -> Iterator[Path]:
    """Hold a job's name during its launch. A launch that fails releases the name, unless something of the job may run.

    `fab stop` interrupts the launch inside the block.

    Parameters
    ----------
    records : Records
        The records of launched jobs.
    name : str
        The job's name.

    Yields
    ------
    Path
        The folder of the job's record.

    Raises
    ------
    JobNameError
        There is a job of this name.
    """
    folder = records.claim(name)
    try:
        with StopOnSignal():
            yield folder
    except BaseException as error:
        uncertain = isinstance(error, TorchfabError) and error.uncertain_hosts
        if not uncertain and not has_started(records, name):  # else `fab stop` must find the job
            records.release(name)
        raise


def has_started(records: Records, name: str) -> bool:
    """Return whether the record of a job says that it has started.

    Parameters
    ----------
    records : Records
        The records of launched jobs.
    name : str
        The job's name.

    Returns
    -------
    bool
        False where there is no record.
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

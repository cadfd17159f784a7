"""Wrap every function of the API: suppress output, and raise errors with their complete text."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torchfab
from torchfab.core import console, program_name
from torchfab.core.errors import HostsFailedError, TorchfabError
from torchfab.core.program_name import ProgramName

Item = TypeVar("Item")
_log = logging.getLogger("torchfab")


@contextmanager
def quiet() -> Iterator[None]:
    """Log output at level INFO of the logger `torchfab` instead of printing it, and complete the text of an error.

    Yields
    ------
    None

    Raises
    ------
    TorchfabError
        The error of the block, with the message of the command line.
    """
    try:
        with console.redirected(_log.info):
            yield
    except TorchfabError as error:
        complete(error)
        raise


def complete(error: TorchfabError) -> None:
    """Give an error the message of the command line: the reasons of all hosts, and the program's name in commands.

    Parameters
    ----------
    error : TorchfabError
        The error; changed in place.
    """
    name = _program_name()
    error.message, error.fix = name.replace_in(error.message), name.replace_in(error.fix)
    if isinstance(error, HostsFailedError) and not error.listing:
        error.listing = name.replace_in("".join(f"\n{paragraph}" for paragraph in console.fold_reasons(error)))


def iterate(items: Generator[Item, None, None]) -> Iterator[Item]:
    """Yield the items of a generator whose code runs under `quiet`.

    Parameters
    ----------
    items : generator
        The generator. It is closed when the caller stops iterating.

    Yields
    ------
    Any
        Its items.
    """
    try:
        while True:
            with quiet():
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
    finally:
        items.close()


def _program_name() -> ProgramName:
    """Return the program's name in messages: `torchfab` if it is installed, `fab` in the clone."""
    called = program_name.called()
    in_clone = (Path(torchfab.__file__).parents[1] / "run").is_file()
    return called if called.name != program_name.FAB or in_clone else ProgramName("torchfab", None)

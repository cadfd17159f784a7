"""What every function of the API does around its work: print nothing, and raise errors with their whole text."""

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
    """Log what a command would print, at level INFO of the logger `torchfab`, and complete the text of an error.

    Yields
    ------
    None

    Raises
    ------
    TorchfabError
        As the block raises it, with the text that the command line prints.
    """
    try:
        with console.redirected(_log.info):
            yield
    except TorchfabError as error:
        complete(error)
        raise


def complete(error: TorchfabError) -> None:
    """Give an error the text that the command line prints: the reasons of all hosts, and commands as typed here.

    Parameters
    ----------
    error : TorchfabError
        It is changed.
    """
    name = _program_name()
    error.message, error.fix = name.replace_in(error.message), name.replace_in(error.fix)
    if isinstance(error, HostsFailedError) and not error.listing:
        error.listing = name.replace_in("".join(f"\n{paragraph}" for paragraph in console.fold_reasons(error)))


def iterate(items: Generator[Item, None, None]) -> Iterator[Item]:
    """Yield from a generator that does its work between its items under `quiet`.

    Parameters
    ----------
    items : generator
        The generator. It is closed when the caller stops to iterate.

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
    """Return the name that commands have in a terminal: `torchfab` where it is installed, `fab` in the clone."""
    called = program_name.called()
    in_clone = (Path(torchfab.__file__).parents[1] / "run").is_file()
    return called if called.name != program_name.FAB or in_clone else ProgramName("torchfab", None)

"""The host that the current thread works on, for the lines of the debug log (`fab --debug`).

`torchfab.cli.debug_log` prints that log. All other modules only call `logging.getLogger(__name__).debug(...)`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_host: ContextVar[str] = ContextVar("host", default="")


def current_host() -> str:
    """Return the host that the current thread works on.

    Returns
    -------
    str
        The name given to `log_host`; empty outside its block.
    """
    return _host.get()


def program_of(command: str) -> str:
    """Return the part of a command that the debug log may show: its program; arguments may contain a password.

    Parameters
    ----------
    command : str
        A shell command.

    Returns
    -------
    str
        The first word that is not an assignment to a variable.
    """
    return next((word for word in command.split() if "=" not in word), "")


@contextlib.contextmanager
def log_host(name: str) -> Iterator[None]:
    """Set the host of this thread's debug log lines inside the block.

    Parameters
    ----------
    name : str
        The display name of the host.

    Returns
    -------
    context manager
        Yields nothing.
    """
    token = _host.set(name)
    try:
        yield
    finally:
        _host.reset(token)

"""Time out each step of an SSH connection and record which step stalled.

A server that accepts a connection can stall at any step, and paramiko waits at some of them without a timeout.
The error names the step, so that the administrator of the host knows where to look.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torchfab.transport import fanout, timers

# What the server did not do at each step; completes "no answer from HOST within 10 s: ...".
BANNER = "it accepted the connection, but sent no SSH banner"
KEY_EXCHANGE = "it did not finish the key exchange"
LOGIN = "it did not finish the login"
CHANNEL = "it accepted the login, but opened no channel"
COMMAND = "it opened a channel, but started no program"
INPUT = "the connection is open, but the host reads nothing that is sent"


def handshake_step(client: Any) -> str:
    """Return the step of the handshake at which a client waits.

    Parameters
    ----------
    client : paramiko.SSHClient
        The client, at any stage of connecting.

    Returns
    -------
    str
        `BANNER`, `KEY_EXCHANGE` or `LOGIN`; empty while the TCP connection itself is not open.
    """
    transport = client.get_transport()
    if transport is None:
        return ""
    if not transport.remote_version:
        return BANNER
    return LOGIN if transport.initial_kex_done else KEY_EXCHANGE


class StepTimeout:
    """Close a connection when one of its steps takes too long.

    Parameters
    ----------
    close : callable
        Closes the connection; a thread that waits on it then gets an error.
    current_step : callable
        Returns the step at which the connection waits; called if `at_most` gets no step.

    Attributes
    ----------
    stalled_step : str
        The step at which the connection was closed; empty if it was not.
    failed_step : str
        The step at which the handshake failed by itself; empty if it did not.
    """

    def __init__(self, close: Callable[[], None], current_step: Callable[[], str]) -> None:
        self.close, self.current_step = close, current_step
        self.stalled_step = self.failed_step = ""

    @contextlib.contextmanager
    def at_most(self, seconds: float, step: str = "") -> Iterator[None]:
        """Close the connection unless the block ends in time.

        Parameters
        ----------
        seconds : float
            The time limit of the block.
        step : str
            The step to record. Default: the one that `current_step` returns at the timeout.

        Returns
        -------
        context manager
            Yields nothing.
        """
        timer = timers.after(seconds, lambda: self._expire(step))
        try:
            yield
            fanout.report_progress()
        finally:
            timer.cancel()

    def _expire(self, step: str) -> None:
        self.stalled_step = step or self.current_step()
        self.close()

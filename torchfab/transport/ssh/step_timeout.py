"""An end to every step of making a connection, also where the SSH library waits without one; and which step that was.

A server that accepts a connection can fall silent at any step. What it did not do is told by name: that is where its
administrator has to look.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torchfab.transport import fanout, timers

# What a server owes at each step, as the end of "no answer from HOST within 10 s: ...".
BANNER = "it accepted the connection, and sent no SSH banner"
KEY_EXCHANGE = "it did not finish the key exchange"
LOGIN = "it did not finish the login"
CHANNEL = "it let us in, and opened no channel"
COMMAND = "it opened a channel, and started no program"
INPUT = "the connection stands, but nothing that is sent there is taken"


def handshake_step(client: Any) -> str:
    """Return what a client (a paramiko.SSHClient) waits for; empty: the connection itself."""
    transport = client.get_transport()
    if transport is None:
        return ""
    if not transport.remote_version:
        return BANNER
    return LOGIN if transport.initial_kex_done else KEY_EXCHANGE


class StepTimeout:
    """Hangs up when a step takes too long.

    Parameters
    ----------
    hang_up : callable
        Closes the connection; whoever waits on it gets an error then.
    step : callable
        Returns what the other side owes us, where `at_most` is not told.

    Attributes
    ----------
    stuck : str
        The step at which the connection was closed; empty while it was not.
    reached : str
        The step at which the handshake ended by itself; empty while it did not.
    """

    def __init__(self, hang_up: Callable[[], None], step: Callable[[], str]) -> None:
        self.hang_up, self.step = hang_up, step
        self.stuck = self.reached = ""

    @contextlib.contextmanager
    def at_most(self, seconds: float, step: str = "") -> Iterator[None]:
        """Hang up unless the block has ended within so many seconds."""
        deadline = timers.after(seconds, lambda: self._give_up(step))
        try:
            yield
            fanout.report_progress()
        finally:
            deadline.cancel()

    def _give_up(self, step: str) -> None:
        self.stuck = step or self.step()
        self.hang_up()

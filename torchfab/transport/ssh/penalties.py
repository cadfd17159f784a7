"""Wait for servers that temporarily refuse this machine's address: sshd's PerSourcePenalties.

OpenSSH 9.8 and newer add up penalties per source address: for logins that fail, for connections that end without a
login, and for logins that take too long. Above 15 s in total, sshd refuses that address until they have expired, and
sends a line of text instead of its banner. Further attempts do not add to them, so a few spaced ones are harmless.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import paramiko

from torchfab.core.console import write_err

Result = TypeVar("Result")
REFUSAL = "Not allowed at this time"
# Between two attempts: 62 s in all. Most penalties are shorter.
_PAUSES_S = (2.0, 6.0, 10.0, 14.0, 30.0)
_log = logging.getLogger(__name__)


class PenalizedError(paramiko.SSHException):
    """The server temporarily refuses connections from this machine's address."""


def wait_out(attempt: Callable[[], Result], label: str) -> Result:
    """Connect; while the server refuses this machine's address because of penalties, try again, for about a minute.

    Parameters
    ----------
    attempt : callable
        Makes a connection.
    label : str
        Display name of the host, for the message.

    Returns
    -------
    Any
        The result of `attempt`.

    Raises
    ------
    PenalizedError
        The server still refuses.
    """
    for number, pause_s in enumerate(_PAUSES_S):
        try:
            return attempt()
        except PenalizedError:
            if not number:
                why = "its sshd temporarily refuses this address (PerSourcePenalties)"
                write_err(f"{label}: {why}; waits up to {sum(_PAUSES_S):.0f} s")
            _log.debug("penalty: next attempt in %.0f s", pause_s)
            time.sleep(pause_s)
    return attempt()

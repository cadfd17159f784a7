"""Logging in: at a host, at those that it is reached through, or only so far as to see whose key it shows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from torchfab.errors import HostError
from torchfab.ssh import patience
from torchfab.ssh.explaining import explain
from torchfab.ssh.patience import Patience

if TYPE_CHECKING:
    from torchfab.ssh.hostkeys import Rules


def log_in(connection: Any) -> Patience:
    """Connect and log in; return what ends the later steps.

    Raises
    ------
    HostError
        The host accepted the connection, and then kept us waiting: with the step.
    """
    from torchfab.ssh import connecting

    client = connection.client
    watch = Patience(lambda: connecting.hang_up(connection), lambda: patience.handshake_step(client))
    connection.patience = watch
    # TCP, handshake and login have time-outs of their own, but each key that is tried has its own, too.
    with watch.at_most(3 * connection.timeout_s):
        try:
            connection.open()
        except Exception:
            watch.reached = patience.handshake_step(client)
            raise
    return watch


def open_way(connection: Any) -> None:
    """Log into the hosts that a host is reached through, the farthest first.

    Raises
    ------
    HostError
        One of them cannot be logged into.
    """
    from torchfab.ssh import connecting

    for hop in connecting.hops(connection)[:-1]:
        begun = time.monotonic()
        try:
            connecting.guard(hop)
            log_in(hop)
        except Exception as error:
            problem = error if isinstance(error, HostError) else explain(error, hop, time.monotonic() - begun)
            name = connecting.label(hop)
            raise HostError(f"its jump host {name}: {problem.message}", problem.fix, hop.host) from error


def host_key(connection: Any) -> tuple[Rules, Any]:
    """Return the key that a host shows, and the rules for it, without logging in there.

    Raises
    ------
    HostError
        It shows none, or a host on the way to it cannot be logged into.
    """
    from torchfab.ssh import connecting

    if isinstance(connection, HostError):
        raise connection
    begun = time.monotonic()
    try:
        open_way(connection)
        return connecting.host_key(connection)
    except HostError:
        raise
    except Exception as error:
        raise explain(error, connection, time.monotonic() - begun) from error
    finally:
        connecting.hang_up(connection)

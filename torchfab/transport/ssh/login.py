"""Logging in: at a host, at those that it is reached through, or only so far as to see whose key it shows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from torchfab.core.errors import HostError
from torchfab.transport.ssh import step_timeout
from torchfab.transport.ssh.errors import explain
from torchfab.transport.ssh.step_timeout import StepTimeout

if TYPE_CHECKING:
    from torchfab.transport.ssh.host_keys import Rules


def log_in(connection: Any) -> StepTimeout:
    """Connect and log in; return what ends the later steps.

    Raises
    ------
    HostError
        The host accepted the connection, and then kept us waiting: with the step.
    """
    from torchfab.transport.ssh import connect

    client = connection.client
    watch = StepTimeout(lambda: connect.hang_up(connection), lambda: step_timeout.handshake_step(client))
    connection.patience = watch
    # TCP, handshake and login have time-outs of their own, but each key that is tried has its own, too.
    with watch.at_most(3 * connection.timeout_s):
        try:
            connection.open()
        except Exception:
            watch.reached = step_timeout.handshake_step(client)
            raise
    return watch


def open_jump_hosts(connection: Any) -> None:
    """Log into the hosts that a host is reached through, the farthest first.

    Raises
    ------
    HostError
        One of them cannot be logged into.
    """
    from torchfab.transport.ssh import connect

    for hop in connect.hops(connection)[:-1]:
        begun = time.monotonic()
        try:
            connect.guard(hop)
            log_in(hop)
        except Exception as error:
            problem = error if isinstance(error, HostError) else explain(error, hop, time.monotonic() - begun)
            name = connect.label(hop)
            raise HostError(f"its jump host {name}: {problem.message}", problem.fix, hop.host) from error


def host_key(connection: Any) -> tuple[Rules, Any]:
    """Return the key that a host shows, and the rules for it, without logging in there.

    Raises
    ------
    HostError
        It shows none, or a host on the way to it cannot be logged into.
    """
    from torchfab.transport.ssh import connect

    if isinstance(connection, HostError):
        raise connection
    begun = time.monotonic()
    try:
        open_jump_hosts(connection)
        return connect.host_key(connection)
    except HostError:
        raise
    except Exception as error:
        raise explain(error, connection, time.monotonic() - begun) from error
    finally:
        connect.hang_up(connection)

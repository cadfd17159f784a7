"""The debug log of a login: its route, and the step at which it failed."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from torchfab.core.errors import HostError
from torchfab.core.log_context import program_of
from torchfab.transport.ssh import step_timeout

_log = logging.getLogger(__name__)
_STEPS: dict[str, str] = {
    step_timeout.BANNER: "banner",
    step_timeout.KEY_EXCHANGE: "key exchange",
    step_timeout.LOGIN: "authentication",
}


def log_route(connection: Any) -> None:
    """Log address, user, keys and time limit of a connection, and where ssh's configuration sets them.

    Parameters
    ----------
    connection : Connection
        Not open yet.
    """
    if not _log.isEnabledFor(logging.DEBUG):
        return
    route = connection.route
    options = ("hostname", "port", "user", "proxyjump", "proxycommand", "identityfile", "connecttimeout")
    origins = [f"{name} {route.options.location(name)}" for name in options if name in route.options.by_name]
    carrier = f"over jump host {route.jumps[0].name}" if route.jumps else "directly"
    address = f"{connection.user}@{connection.host} port {connection.port}"
    _log.debug(
        "route: %s, %s, at most %g s for each step; from ssh's configuration: %s",
        *(address, "over a ProxyCommand" if route.proxy_command else carrier, connection.timeout_s),
        ", ".join(origins) or "nothing",
    )
    files = [path if os.path.isfile(path) else f"{path} (there is no such file)" for path in connection.keys]
    _log.debug("private keys: %s", ", ".join(files) or "none but those of the agent")


def log_failure(connection: Any, error: Exception, took_s: float) -> None:
    """Log the step at which a login failed, and the error.

    Parameters
    ----------
    connection : Connection
        The connection that failed, not closed yet unless a step took too long.
    error : Exception
        The error, of paramiko, a socket or the operating system, or of the host key policy.
    took_s : float
        Seconds since the start of the login.
    """
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug("FAILED at step %s after %.3f s: %s", failed_step(connection, error), took_s, _describe(error))


def log_no_session(connection: Any, problem: HostError) -> None:
    """Log why there is no session with a node: the error that the user sees.

    Parameters
    ----------
    connection : Connection
        The connection that failed.
    problem : HostError
        The error. A ProxyCommand in it is shortened to its program, because its arguments may hold a password.
    """
    if not _log.isEnabledFor(logging.DEBUG):
        return
    text = f"{problem.message}; fix: {problem.fix}" if problem.fix else problem.message
    while connection:
        gateway = connection.gateway
        if isinstance(gateway, str):
            text, gateway = text.replace(gateway, program_of(gateway)), None
        connection = gateway
    _log.debug("no session: %s", text)


def failed_step(connection: Any, error: Exception) -> str:
    """Return the step of a login at which an error occurred.

    Parameters
    ----------
    connection : Connection
        The connection that failed.
    error : Exception
        The error.

    Returns
    -------
    str
        `resolve`, `TCP`, `jump host`, `ProxyCommand`, `banner`, `key exchange`, `host key` or `authentication`.
    """
    timeout, transport = connection.step_timeout, connection.client.get_transport()
    if timeout is not None and timeout.stalled_step:
        return _STEPS[timeout.stalled_step]
    if isinstance(error, socket.gaierror):
        return "resolve"
    if transport is None:
        proxy = "ProxyCommand" if isinstance(connection.gateway, str) else "jump host"
        return proxy if connection.gateway else "TCP"
    if isinstance(error, HostError):
        return "host key"
    return _STEPS[step_timeout.handshake_step(connection.client)]


def _describe(error: Exception) -> str:
    # paramiko collects the errors of all addresses in one exception that does not show them.
    by_address = getattr(error, "errors", {})
    texts = [f"{address[0]} port {address[1]}: {cause}" for address, cause in by_address.items()]
    return "; ".join(texts) or getattr(error, "message", "") or str(error) or type(error).__name__

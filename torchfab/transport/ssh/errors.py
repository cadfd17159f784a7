"""Turn exceptions of a connection into a HostError with the cause and its fix."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from typing import Any

from torchfab.core.errors import HostError


def explain(error: Exception, connection: Any, took_s: float) -> HostError:
    """Return the error to report for an exception of a connection.

    Parameters
    ----------
    error : Exception
        The exception, of paramiko, a socket or the operating system.
    connection : Connection or None
        The connection that failed; None for `localhost`.
    took_s : float
        Seconds from the start of the connection to the exception.

    Returns
    -------
    HostError
        The cause and its fix.
    """
    if connection is None:
        return HostError(f"cannot start python here: {error}")
    import paramiko

    host, port, user = connection.host, connection.port, connection.user
    if step := _stalled_at(error, connection, took_s):
        return stalled(step, connection, connection.timeout_s)
    if isinstance(error, paramiko.PasswordRequiredException):
        return HostError(f"a private key for {user}@{host} has a passphrase", "unlock it in your agent: ssh-add")
    refused = isinstance(error, paramiko.AuthenticationException) or "No authentication methods" in str(error)
    if refused or _is_key_file_error(error):
        absent = [key for key in connection.keys if not os.path.exists(key)]
        missing = f" (there is no {', '.join(absent)})" if absent else ""
        return HostError(
            f"{user}@{host} was refused: none of your keys is accepted there{missing}",
            f"ssh-copy-id -p {port} {user}@{host}, or name a key with fab -i",
        )
    return _explain_network(error, f"{host} port {port}", connection, took_s)


def _stalled_at(error: Exception, connection: Any, took_s: float) -> str:
    """Return the step at which a host stalled after it had accepted the connection; empty where it did not stall.

    paramiko's errors are then "Error reading SSH protocol banner", "No existing session" or "Authentication timeout".
    """
    import paramiko

    timeout = connection.step_timeout
    if timeout is None or timeout.stalled_step:
        return timeout.stalled_step if timeout else ""
    timed_out = took_s >= connection.timeout_s - 0.05
    if isinstance(error, paramiko.AuthenticationException):
        timed_out = "timeout" in str(error).lower()
    return str(timeout.failed_step) if timed_out and isinstance(error, paramiko.SSHException) else ""


def stalled(step: str, connection: Any, timeout_s: float) -> HostError:
    """Return the error for a host that stalled at a step.

    Parameters
    ----------
    step : str
        A constant of `step_timeout`: what the host failed to do.
    connection : Connection
        The connection to it.
    timeout_s : float
        The time limit that it exceeded, in seconds.

    Returns
    -------
    HostError
        The cause and its fix.
    """
    return HostError(
        f"no answer from {connection.host} port {connection.port} within {timeout_s:g} s: {step}",
        "see there whether sshd is overloaded, and its log; a longer wait: fab -t SECONDS",
    )


def _is_key_file_error(error: Exception) -> bool:
    # paramiko raises the last of several errors, which may be that of a key file that is missing or unreadable.
    return isinstance(error, FileNotFoundError | PermissionError) and error.filename is not None


def _explain_network(error: Exception, where: str, connection: Any, took_s: float) -> HostError:
    import paramiko

    causes = list(getattr(error, "errors", {}).values()) or [error]
    if refusal := _explain_refusal(causes, where):
        return refusal
    timed_out = isinstance(error, paramiko.SSHException) and took_s >= connection.timeout_s - 0.05
    if timed_out or any(isinstance(cause, TimeoutError) for cause in causes):
        return HostError(
            f"no answer from {where} within {connection.timeout_s:g} s",
            "check that the node is up and that no firewall is between; a longer wait: fab -t SECONDS",
        )
    if connection.proxy is not None:
        return HostError(
            f"its ProxyCommand failed: {connection.proxy.last_error or error}", f"try it by hand: {connection.gateway}"
        )
    if isinstance(error, EOFError | paramiko.SSHException):
        return HostError(
            f"{where} did not finish the SSH handshake: {error or 'it closed the connection'}",
            "check that sshd listens there; its log says why it refuses (MaxStartups, when many log in at once)",
        )
    return HostError(f"no connection to {where}: {error or type(error).__name__}")


def _explain_refusal(causes: Sequence[Exception], where: str) -> HostError | None:
    """Return the error for a name or an address that cannot be connected to; None where it is something else."""
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return HostError(
            f"the name does not resolve ({where})", "check the hosts file, or give HostName in your ssh config"
        )
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return HostError(f"{where} refused the connection", "check that sshd runs there, and on which port")
    for cause in causes:
        if getattr(cause, "errno", None) in (errno.EHOSTUNREACH, errno.ENETUNREACH):
            fix = "check that the node is up, that this is its address, and that no firewall rejects the connection"
            return HostError(f"no connection to {where}: {os.strerror(cause.errno)}", fix)  # type: ignore[attr-defined]
    return None

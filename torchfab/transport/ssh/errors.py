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
    from paramiko.ssh_exception import IncompatiblePeer

    from torchfab.transport.ssh.penalties import PenalizedError

    host, port = connection.host, connection.port
    if isinstance(error, PenalizedError):
        return _explain_penalty(f"{host} port {port}")
    if step := _stalled_at(error, connection, took_s):
        return stalled(step, connection, connection.timeout_s)
    if isinstance(error, IncompatiblePeer):
        return _explain_incompatible(error, f"{host} port {port}")
    login = _explain_methods(connection) or _explain_keys(error, connection)
    return login or _explain_network(error, f"{host} port {port}", connection, took_s)


def _explain_penalty(where: str) -> HostError:
    return HostError(
        f"{where} temporarily refuses this machine's address: its sshd counts failed and unfinished logins "
        "(PerSourcePenalties), and the penalty was not over after a minute",
        "try again in a few minutes; if that fails: log in with a key that is accepted there (IdentityFile), or have "
        "this machine's address exempted (PerSourcePenaltyExemptList in its sshd_config)",
    )


def _explain_keys(error: Exception, connection: Any) -> HostError | None:
    """Return the error for a login that no key could complete; None if the login was not reached."""
    import paramiko

    host, port, user = connection.host, connection.port, connection.user
    if isinstance(error, paramiko.PasswordRequiredException):
        return HostError(f"a private key for {user}@{host} has a passphrase", "add it to your agent: ssh-add")
    if unreadable := _unreadable_keys(connection):
        return unreadable
    refused = isinstance(error, paramiko.AuthenticationException) or "No authentication methods" in str(error)
    if not refused and not _is_key_file_error(error):
        return None
    absent = [key for key in connection.keys if not os.path.exists(key)]
    missing = f" (there is no {', '.join(absent)})" if absent else ""
    broken = [key for key in getattr(connection.client, "unreadable_keys", {}) if os.path.exists(key)]
    unread = f" ({', '.join(broken)} cannot be read as a key)" if broken else ""
    return HostError(
        f"{user}@{host} was refused: none of your keys is accepted there{missing}{unread}",
        f"ssh-copy-id -p {port} {user}@{host}, or name a key with fab -i",
    )


def _explain_incompatible(error: Exception, where: str) -> HostError:
    """Return the error for a server whose algorithms are all too old."""
    what = str(error).partition("(")[2].rstrip(")") or str(error)
    if "Incompatible version" in str(error):
        return HostError(
            f"{where} and this machine have no SSH version in common: {what}", "its sshd is old: update it"
        )
    return HostError(
        f"{where} and this machine have no SSH algorithm in common: {what}",
        "its sshd is old, or limited to old algorithms (ssh-rsa, SHA-1): update it, or add a host key with "
        "`ssh-keygen -A` there and current KexAlgorithms; see what it offers: ssh -vv",
    )


def _explain_methods(connection: Any) -> HostError | None:
    """Return the error for a server that does not accept keys, or requires another method as well."""
    transport = connection.client.get_transport()
    allowed = getattr(transport, "allowed_methods", ())
    where = f"{connection.user}@{connection.host}"
    if getattr(transport, "accepted_partially", False):
        return HostError(
            f"{where}: the key is accepted, but sshd also requires {' and '.join(allowed)}",
            "torchfab supports login by key alone: allow it there for your address (Match Address ... "
            "AuthenticationMethods publickey in sshd_config), or run torchfab on a host behind that login",
        )
    if allowed and "publickey" not in allowed:
        return HostError(
            f"{where}: sshd accepts no keys there, only {' or '.join(allowed)}",
            "PubkeyAuthentication yes in its sshd_config, and then ssh-copy-id; torchfab logs in with keys",
        )
    return None


def _unreadable_keys(connection: Any) -> HostError | None:
    """Return the error for key files that hold no private key, if no other key is left."""
    broken = getattr(connection.client, "unreadable_keys", {})
    if not broken or any(os.path.exists(key) and key not in broken for key in connection.keys):
        return None
    path, error = next(iter(broken.items()))
    kind, fix = _kind_of_key(path)
    return HostError(f"{path} is {kind}" + ("" if fix else f": {error}"), fix or "name another key with fab -i")


def _kind_of_key(path: str) -> tuple[str, str]:
    try:
        with open(path, "rb") as file:
            head = file.read(40)
    except OSError:
        return "not readable", ""
    if head.startswith(b"PuTTY-User-Key-File"):
        return "a key of PuTTY", f"convert it: puttygen {path} -O private-openssh -o {path}.openssh"
    if head.startswith((b"ssh-", b"ecdsa-", b"sk-")):
        return "a public key", f"name the private one: {path.removesuffix('.pub')}"
    return "no private key that can be read", ""


def _stalled_at(error: Exception, connection: Any, took_s: float) -> str:
    """Return the step at which a host stalled after it had accepted the connection; empty if it did not stall.

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
        A constant of `step_timeout`: the action that the host did not complete.
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
        "check there whether sshd is overloaded, and read its log; to wait longer: fab -t SECONDS",
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
            "check that the node is up and that no firewall blocks the connection; to wait longer: fab -t SECONDS",
        )
    if connection.proxy is not None:
        return HostError(
            f"its ProxyCommand failed: {connection.proxy.last_error or error}", f"try it by hand: {connection.gateway}"
        )
    if isinstance(error, EOFError | paramiko.SSHException):
        return HostError(
            f"{where} did not finish the SSH handshake: {error or 'it closed the connection'}",
            "check that sshd listens there; its log says why it refuses (MaxStartups, when many log in at once; "
            "PerSourcePenalties, after failed logins)",
        )
    reason = next((os.strerror(number) for cause in causes if (number := getattr(cause, "errno", None))), "")
    return HostError(f"no connection to {where}: {reason or error or type(error).__name__}")


def _explain_refusal(causes: Sequence[Exception], where: str) -> HostError | None:
    """Return the error for a name or an address that cannot be connected to; None if the cause is something else."""
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

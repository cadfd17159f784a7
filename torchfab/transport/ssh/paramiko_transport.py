"""paramiko's client and transport, adapted to a thousand connections at once.

Each private key is read once, and the thread of an idle connection sleeps instead of polling.
"""

from __future__ import annotations

import copy
import logging
import os
import socket
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import paramiko
from paramiko.kex_curve25519 import KexCurve25519
from paramiko.packet import Packetizer

from torchfab.core.log_context import current_host, log_host
from torchfab.transport.ssh.penalties import REFUSAL, PenalizedError

_log = logging.getLogger(__name__)
# Without a handler, Python prints warnings of paramiko on stderr. The debug log adds a handler of its own.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False

# The thread of an open connection wakes up this often by itself, to send keepalives and to renew the session keys.
_POLL_S = 20.0


def _with_both_names(algorithms: Sequence[str]) -> tuple[str, ...]:
    index = algorithms.index("curve25519-sha256@libssh.org")
    return (*algorithms[:index], "curve25519-sha256", *algorithms[index:])


class _Packets(Packetizer):
    """paramiko's packetizer without the timer thread per handshake; `StepTimeout` limits the handshake instead.

    Attributes
    ----------
    lines : list of str
        The lines that the server sent before the key exchange: its banner, or why it refuses.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.lines: list[str] = []

    def readline(self, timeout: float) -> str:
        """Read and keep a line that the server sends before the key exchange.

        Parameters
        ----------
        timeout : float
            Seconds to wait.

        Returns
        -------
        str
            The line.
        """
        line: str = super().readline(timeout)
        self.lines.append(line)
        return line

    def start_handshake(self, timeout: float) -> None:
        """Start no timer.

        Parameters
        ----------
        timeout : float
            Ignored.
        """


class Transport(paramiko.Transport):
    """A transport that requests the known host key types first, and waits without polling ten times a second.

    It supports curve25519-sha256 under both its names: RFC 8731 named the algorithm without `@libssh.org`, and some
    servers offer only that name.

    Parameters
    ----------
    sock : socket or Channel
        The connection to the server.
    host_key_types : sequence of str
        Host key algorithms, the preferred one first. Default: paramiko's.
    **kwargs
        Passed to paramiko.Transport.
    """

    _kex_info: ClassVar[Any] = {**paramiko.Transport._kex_info, "curve25519-sha256": KexCurve25519}  # type: ignore[attr-defined]
    _preferred_kex: ClassVar[Any] = _with_both_names(paramiko.Transport._preferred_kex)  # type: ignore[attr-defined]

    def __init__(self, sock: Any, host_key_types: Sequence[str] = (), **kwargs: Any) -> None:
        self.allowed_methods: tuple[str, ...] = ()  # the methods that the server accepts, if it does not accept keys
        self.accepted_partially = False  # it accepted a key, and requires another method as well
        self.host_key_types = tuple(host_key_types) or tuple(paramiko.Transport._preferred_keys)  # type: ignore[attr-defined]
        self.log_host = current_host()
        if type(sock) is socket.socket and _log.isEnabledFor(logging.DEBUG):  # no jump host or ProxyCommand
            (peer, port, *_), (own, own_port, *_) = sock.getpeername(), sock.getsockname()
            _log.debug("TCP: connected to %s port %d, from %s port %d", peer, port, own, own_port)
        super().__init__(sock, **{"packetizer_class": _Packets, **kwargs})

    def run(self) -> None:
        """Read the server's messages, in the transport's own thread."""
        with log_host(self.log_host):
            super().run()

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        """The host key algorithms, the best first."""
        return self.host_key_types

    def start_client(self, event: threading.Event | None = None, timeout: float | None = None) -> None:
        """Exchange keys with the server; without an event, block until that is done.

        paramiko polls while it waits; this method sleeps.

        Parameters
        ----------
        event : threading.Event, optional
            Set when the key exchange is done; the method then returns at once. Default: wait.
        timeout : float, optional
            Seconds to wait. Default: no limit.

        Raises
        ------
        paramiko.SSHException
            The key exchange failed.
        """
        if event is not None:
            super().start_client(event, timeout)
            return
        if timeout is not None:  # paramiko checks banner_timeout only between two reads
            self.sock.settimeout(min(1.0, timeout / 10))
        done = threading.Event()
        _log.debug("banner: waiting for the server's, then for the key exchange")
        super().start_client(done)
        done.wait(timeout)
        if not self.active:
            if any(REFUSAL in line for line in getattr(self.packetizer, "lines", ())):
                raise PenalizedError(REFUSAL)
            raise self.get_exception() or paramiko.SSHException("Negotiation failed.")
        _log.debug("key exchange: done; the server is %s, host key %s", self.remote_version, self.host_key_type)

    def auth_publickey(self, username: str, key: paramiko.PKey, event: threading.Event | None = None) -> list[str]:
        """Log in with a key; without an event, block until the server answers.

        paramiko polls while it waits; this method sleeps.

        Parameters
        ----------
        username : str
            The user on the server.
        key : paramiko.PKey
            The private key.
        event : threading.Event, optional
            Set when the server has answered; the method then returns at once. Default: wait.

        Returns
        -------
        list of str
            The authentication methods that the server still requires; empty after a complete login.

        Raises
        ------
        paramiko.AuthenticationException
            The server refused the key, or did not answer within `auth_timeout`.
        """
        if event is not None:
            return super().auth_publickey(username, key, event)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("authentication: offering %s as %s", _describe_key(key), username)
        done = threading.Event()
        super().auth_publickey(username, key, done)
        try:
            if not done.wait(self.auth_timeout):
                raise paramiko.AuthenticationException("Authentication timeout.")
            assert self.auth_handler is not None
            allowed: list[str] = self.auth_handler.wait_for_response(done)
        except paramiko.SSHException as error:
            if isinstance(error, paramiko.BadAuthenticationType):
                self.allowed_methods = tuple(error.allowed_types)
            refused = str(error) == "Authentication failed."
            _log.debug("authentication: %s", "the server does not accept this key" if refused else error)
            raise
        if allowed:
            self.allowed_methods, self.accepted_partially = tuple(allowed), True
        _log.debug("authentication: accepted%s", f"; the server also requires {', '.join(allowed)}" if allowed else "")
        return allowed

    def auth_interactive_dumb(self, username: str, handler: Any = None, submethods: str = "") -> list[str]:
        """Refuse to prompt for a second factor on the terminal, because many logins run at once.

        Parameters
        ----------
        username, handler, submethods
            Ignored.

        Raises
        ------
        paramiko.BadAuthenticationType
            Always.
        """
        raise paramiko.BadAuthenticationType("a second factor is required", list(self.allowed_methods))

    def let_sleep(self) -> None:
        """From now on, poll only every 20 s; received data and `close` wake the thread."""
        self.sock.settimeout(_POLL_S)

    def stop_thread(self) -> None:
        """Stop the thread; closing the socket wakes it if it sleeps."""
        self.active = False
        if isinstance(self.sock, socket.socket):  # not a channel of a jump host: closing that wakes the thread
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:  # the peer has already closed the connection
                pass
        super().stop_thread()


_keys: dict[tuple[Any, ...], paramiko.PKey | paramiko.SSHException] = {}


class Client(paramiko.SSHClient):
    """An SSH client that reads each private key once for all hosts, until its file changes.

    Attributes
    ----------
    unreadable_keys : dict of str to SSHException
        The key files that are not a private key of a known format, with paramiko's error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unreadable_keys: dict[str, paramiko.SSHException] = {}

    def _families_and_addresses(self, hostname: str, port: int) -> list[tuple[Any, Any]]:
        # paramiko connects to these addresses, one after the other, until one accepts.
        _log.debug("resolve: looking up %s", hostname)
        found = list(super()._families_and_addresses(hostname, port))  # type: ignore[misc]
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("TCP: connecting to %s port %d", ", then ".join(address[0] for _, address in found), port)
        return found

    def _key_from_filepath(self, filename: str, klass: type[paramiko.PKey], password: str | None) -> paramiko.PKey:
        cache_key = (filename, klass, password, _stamp(filename), _stamp(f"{filename}-cert.pub"))
        if cache_key not in _keys:
            try:
                _keys[cache_key] = super()._key_from_filepath(filename, klass, password)  # type: ignore[misc]
            except paramiko.SSHException as error:  # another key type, or a passphrase
                _keys[cache_key] = error
        cached = _keys[cache_key]
        if not isinstance(cached, paramiko.SSHException):
            self.unreadable_keys.pop(filename, None)
        else:
            self.unreadable_keys[filename] = cached
            if klass is paramiko.Ed25519Key and not _is_read(filename):  # the last type that paramiko tries
                _log.debug("authentication: the private key %s cannot be read: %s", filename, cached)
            raise copy.copy(cached)  # each thread raises its own copy: raising adds a traceback to it
        return cached


def _is_read(filename: str) -> bool:
    """Whether a file was read as a private key of any type."""
    return any(key[0] == filename and isinstance(value, paramiko.PKey) for key, value in list(_keys.items()))


def _describe_key(key: paramiko.PKey) -> str:
    """Return a key's type, fingerprint and origin, for the debug log."""
    files = (entry[0] for entry, value in list(_keys.items()) if value is key)
    origin = f"of the agent, {key.comment}" if isinstance(key, paramiko.AgentKey) else next(files, "")
    return f"{key.get_name()} {key.fingerprint} ({origin})"


def _stamp(path: str) -> tuple[int, ...]:
    """Return a stamp that changes when the file does; empty if it does not exist."""
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)

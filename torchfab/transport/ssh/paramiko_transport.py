"""paramiko's client and transport, for a thousand at once: each key is read once; a thread for each, which sleeps."""

from __future__ import annotations

import copy
import os
import socket
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import paramiko
from paramiko.kex_curve25519 import KexCurve25519
from paramiko.packet import Packetizer

# How often an open connection's thread looks up without being woken: for its keepalive, and for a new key exchange.
_LOOK_UP_S = 20.0


def _with_both_names(algorithms: Sequence[str]) -> tuple[str, ...]:
    place = algorithms.index("curve25519-sha256@libssh.org")
    return (*algorithms[:place], "curve25519-sha256", *algorithms[place:])


class _Packets(Packetizer):
    """paramiko's, without a timer thread for each handshake, which it cancels with every packet: `patience` has one."""

    def start_handshake(self, timeout: float) -> None:
        """Begin nothing."""


class Transport(paramiko.Transport):
    """paramiko's, which asks a server first for keys that are known, and waits without looking up ten times a second.

    It knows curve25519-sha256 by both its names: RFC 8731 gave the algorithm the name without `@libssh.org`; servers
    may offer only that one.
    """

    _kex_info: ClassVar[Any] = {**paramiko.Transport._kex_info, "curve25519-sha256": KexCurve25519}  # type: ignore[attr-defined]
    _preferred_kex: ClassVar[Any] = _with_both_names(paramiko.Transport._preferred_kex)  # type: ignore[attr-defined]

    def __init__(self, sock: Any, host_key_types: Sequence[str] = (), **kwargs: Any) -> None:
        self.host_key_types = tuple(host_key_types) or tuple(paramiko.Transport._preferred_keys)  # type: ignore[attr-defined]
        super().__init__(sock, **{"packetizer_class": _Packets, **kwargs})

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        """The host key algorithms, the best first."""
        return self.host_key_types

    def start_client(self, event: threading.Event | None = None, timeout: float | None = None) -> None:
        """Exchange keys; without an event, wait for the end of it as paramiko does, but asleep."""
        if event is not None:
            super().start_client(event, timeout)
            return
        if timeout is not None:  # this thread looks at the time that the banner may take between two reads
            self.sock.settimeout(min(1.0, timeout / 10))
        done = threading.Event()
        super().start_client(done)
        done.wait(timeout)
        if not self.active:
            raise self.get_exception() or paramiko.SSHException("Negotiation failed.")

    def auth_publickey(self, username: str, key: paramiko.PKey, event: threading.Event | None = None) -> list[str]:
        """Log in with a key; without an event, wait for the answer as paramiko does, but asleep."""
        if event is not None:
            return super().auth_publickey(username, key, event)
        done = threading.Event()
        super().auth_publickey(username, key, done)
        if not done.wait(self.auth_timeout):
            raise paramiko.AuthenticationException("Authentication timeout.")
        assert self.auth_handler is not None
        allowed: list[str] = self.auth_handler.wait_for_response(done)
        return allowed

    def let_sleep(self) -> None:
        """From now on, look up seldom: the thread is woken by what arrives, and by `close`."""
        self.sock.settimeout(_LOOK_UP_S)

    def stop_thread(self) -> None:
        """End the thread, also where it sleeps: it wakes at the end of what it reads."""
        self.active = False
        if isinstance(self.sock, socket.socket):  # and not a channel of a jump host, whose end wakes it by itself
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:  # the other side has hung up before us
                pass
        super().stop_thread()


_keys: dict[tuple[Any, ...], paramiko.PKey | paramiko.SSHException] = {}


class Client(paramiko.SSHClient):
    """paramiko's, which reads a private key once for all hosts, as long as its file stays as it is."""

    def _key_from_filepath(self, filename: str, klass: type[paramiko.PKey], password: str | None) -> paramiko.PKey:
        wanted = (filename, klass, password, _state(filename), _state(f"{filename}-cert.pub"))
        if wanted not in _keys:
            try:
                _keys[wanted] = super()._key_from_filepath(filename, klass, password)  # type: ignore[misc]
            except paramiko.SSHException as error:  # it is of another class, or has a passphrase
                _keys[wanted] = error
        found = _keys[wanted]
        if isinstance(found, paramiko.SSHException):
            raise copy.copy(found)  # one for each thread: a traceback is added to it
        return found


def _state(path: str) -> tuple[int, ...]:
    """Return what changes when a file does; nothing where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino)

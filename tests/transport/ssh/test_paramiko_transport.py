"""The transport, tested with paramiko's own server over a socket pair."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED

from torchfab.transport.ssh import paramiko_transport
from torchfab.transport.ssh.paramiko_transport import Client, Transport


class OneKeyServer(paramiko.ServerInterface):
    """A server that accepts one key."""

    def __init__(self, key: paramiko.PKey) -> None:
        self.key = key

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return AUTH_SUCCESSFUL if key == self.key else AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED


@pytest.fixture(scope="module")
def key() -> paramiko.PKey:
    return paramiko.RSAKey.generate(2048)


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def server(sockets: tuple[socket.socket, socket.socket], key: paramiko.PKey) -> Iterator[paramiko.Transport]:
    transport = paramiko.Transport(sockets[1])
    transport.add_server_key(key)
    transport.start_server(threading.Event(), OneKeyServer(key))
    yield transport
    transport.close()
    transport.join(60)


@pytest.mark.usefixtures("server")
def test_a_connection_uses_one_thread(
    sockets: tuple[socket.socket, socket.socket], key: paramiko.PKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def starting(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starting)
    client = Transport(sockets[0])
    client.start_client(timeout=60)
    client.auth_publickey("me", key)
    client.open_session(timeout=60)
    client.close()
    assert [each for each in started if isinstance(each, Transport)] == [client]
    # paramiko's own handshake, on the server's side, starts one timer thread.
    assert len([each for each in started if isinstance(each, threading.Timer)]) == 1
    assert len(started) == 2


@pytest.mark.usefixtures("server")
def test_closing_ends_a_sleeping_connection_at_once(
    sockets: tuple[socket.socket, socket.socket], key: paramiko.PKey
) -> None:
    client = Transport(sockets[0])
    client.start_client(timeout=60)
    client.auth_publickey("me", key)
    client.let_sleep()
    time.sleep(0.3)  # the thread sleeps now
    started_at = time.monotonic()
    client.close()
    client.join(60)
    assert not client.is_alive()
    assert time.monotonic() - started_at < 15, "the thread continued to sleep"


@pytest.mark.usefixtures("server")
def test_a_refused_key_raises(sockets: tuple[socket.socket, socket.socket]) -> None:
    client = Transport(sockets[0])
    client.start_client(timeout=60)
    with pytest.raises(paramiko.AuthenticationException):
        client.auth_publickey("me", paramiko.RSAKey.generate(2048))
    client.close()


def test_a_disconnect_in_the_key_exchange_raises(sockets: tuple[socket.socket, socket.socket]) -> None:
    sockets[1].sendall(b"SSH-2.0-x\r\n")
    client = Transport(sockets[0])
    threading.Timer(0.2, lambda: sockets[1].shutdown(socket.SHUT_RDWR)).start()
    started_at = time.monotonic()
    with pytest.raises((paramiko.SSHException, EOFError)):
        client.start_client(timeout=60)
    assert time.monotonic() - started_at < 30


def test_a_missing_banner_raises_in_time(sockets: tuple[socket.socket, socket.socket]) -> None:
    client = Transport(sockets[0])
    client.banner_timeout = 0.5
    with pytest.raises(paramiko.SSHException, match="banner"):
        client.start_client(timeout=60)


def test_an_unanswered_login_raises_in_time(
    sockets: tuple[socket.socket, socket.socket], key: paramiko.PKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = paramiko.Transport(sockets[1])
    silent.add_server_key(key)
    release = threading.Event()
    monkeypatch.setattr(OneKeyServer, "check_auth_publickey", lambda *_: release.wait(60) and AUTH_FAILED)
    silent.start_server(threading.Event(), OneKeyServer(key))
    client = Transport(sockets[0])
    client.start_client(timeout=60)
    client.auth_timeout = 0.3
    with pytest.raises(paramiko.AuthenticationException, match="timeout"):
        client.auth_publickey("me", key)
    client.close()
    release.set()
    silent.close()


# ---- keys


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The private key files that paramiko reads."""
    found: list[str] = []
    read = paramiko.PKey.from_private_key_file.__func__  # type: ignore[attr-defined]

    def reading(cls: type[paramiko.PKey], filename: str, password: str | None = None) -> paramiko.PKey:
        found.append(f"{cls.__name__} {filename}")
        key: paramiko.PKey = read(cls, filename, password)
        return key

    monkeypatch.setattr(paramiko.PKey, "from_private_key_file", classmethod(reading))
    monkeypatch.setattr(paramiko_transport, "_keys", {})
    return found


def load(path: Path, kind: type[paramiko.PKey]) -> paramiko.PKey:
    client: Any = Client()
    client._transport = Transport(socket.socket())  # it logs
    try:
        found: paramiko.PKey = client._key_from_filepath(str(path), kind, None)
        return found
    finally:
        client._transport.sock.close()


def test_a_key_is_read_once_for_all_hosts(tmp_path: Path, key: paramiko.RSAKey, reads: list[str]) -> None:
    path = tmp_path / "id"
    key.write_private_key_file(str(path))
    for _ in range(3):
        with pytest.raises(paramiko.SSHException):
            load(path, paramiko.ECDSAKey)
        assert load(path, paramiko.RSAKey) == key
    assert reads == [f"ECDSAKey {path}", f"RSAKey {path}"]


def test_a_changed_key_file_is_read_again(tmp_path: Path, key: paramiko.RSAKey, reads: list[str]) -> None:
    path, newer = tmp_path / "id", paramiko.RSAKey.generate(2048)
    key.write_private_key_file(str(path))
    assert load(path, paramiko.RSAKey) == key
    path.unlink()
    newer.write_private_key_file(str(path))
    assert load(path, paramiko.RSAKey) == newer
    (tmp_path / "id-cert.pub").write_text("no certificate")
    with pytest.raises((paramiko.SSHException, ValueError)):
        load(path, paramiko.RSAKey)
    assert len(reads) == 3


def test_a_missing_key_file_raises_each_time(tmp_path: Path, reads: list[str]) -> None:
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "id", paramiko.RSAKey)
    assert len(reads) == 2

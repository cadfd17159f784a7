"""Logins that a real sshd refuses: the error says what it allows, and which key cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_host_keys import Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.stop()


def known(server: Server) -> str:
    return f"[127.0.0.1]:{server.port} {server.key('host_ed25519')}\n"


def test_second_factor_is_named(server: Server) -> None:
    server.start(f"HostKey {server.folder}/host_ed25519", "PasswordAuthentication yes",
                 "AuthenticationMethods publickey,password")  # fmt: skip
    error = server.ours(server.config(known(server)))
    assert "the key is accepted, but sshd requires password as well" in error, error
    assert "ssh-copy-id" not in error


def test_server_that_takes_no_keys_is_named(server: Server) -> None:
    server.start(f"HostKey {server.folder}/host_ed25519", "PubkeyAuthentication no",
                 "PasswordAuthentication yes")  # fmt: skip
    error = server.ours(server.config(known(server)))
    assert "sshd takes no keys there, only password" in error, error


def test_refused_key_is_copied_with_ssh_copy_id(server: Server) -> None:
    server.start(f"HostKey {server.folder}/host_ed25519")
    (server.folder / "user.pub").unlink()  # its AuthorizedKeysFile
    error = server.ours(server.config(known(server)))
    assert "none of your keys is accepted there" in error, error
    assert "ssh-copy-id" in error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not a key\n", "is no private key that can be read"),
        ("PuTTY-User-Key-File-3: ssh-ed25519\n", "is a key of PuTTY; puttygen"),
        ("ssh-ed25519 AAAAC3Nz me@here\n", "is a public key"),
    ],
)
def test_file_that_is_no_private_key_is_named(server: Server, content: str, words: str) -> None:
    server.start(f"HostKey {server.folder}/host_ed25519")
    (server.folder / "user").write_text(content)
    error = server.ours(server.config(known(server)))
    assert f"{server.folder}/user" in error, error
    assert words.partition(";")[0] in error, error


def test_old_key_exchange_is_named(server: Server) -> None:
    server.start(f"HostKey {server.folder}/host_ed25519", "KexAlgorithms sntrup761x25519-sha512@openssh.com")
    error = server.ours(server.config(known(server)))
    assert "no SSH algorithm in common" in error, error
    assert "kex" in error.lower(), error

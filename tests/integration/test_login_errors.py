"""Logins that a real sshd refuses: the error names the allowed methods and the unusable keys."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.fab import eventually
from tests.integration.test_host_keys import Server
from tests.support import require


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
    assert "the key is accepted, but sshd also requires password" in error, error
    assert "ssh-copy-id" not in error


def test_server_that_takes_no_keys_is_named(server: Server) -> None:
    server.start(f"HostKey {server.folder}/host_ed25519", "PubkeyAuthentication no",
                 "PasswordAuthentication yes")  # fmt: skip
    error = server.ours(server.config(known(server)))
    assert "sshd accepts no keys there, only password" in error, error


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


# Servers and keys that need no error: what sshd sets, and what is done to the user's key.
GOOD = {
    "one session a connection": (("MaxSessions 1",), ()),
    "another user is denied": (("DenyUsers nobody-else",), ()),
    "a key that others can read": ((), ("chmod", "0644", "{key}")),
    "a key in PEM": ((), ("ssh-keygen", "-q", "-p", "-m", "PEM", "-N", "", "-P", "", "-f", "{key}")),
}


@pytest.mark.parametrize("name", GOOD)
def test_unusual_servers_and_keys_let_in(server: Server, name: str) -> None:
    lines, change = GOOD[name]
    if change:
        subprocess.run([word.format(key=server.folder / "user") for word in change], check=True, capture_output=True)
    server.start(f"HostKey {server.folder}/host_ed25519", *lines)
    assert server.ours(server.config(known(server))) == ""


def test_bad_key_beside_a_good_one_does_not_matter(server: Server) -> None:
    server.start(f"HostKey {server.folder}/host_ed25519")
    (server.folder / "bad").write_text("not a key\n")
    assert server.ours(server.config(known(server), "Host *", f"  IdentityFile {server.folder}/bad")) == ""


def test_wrong_keys_before_the_right_one_end_no_connection_without_a_login(server: Server) -> None:
    # For a connection that ends without a login, sshd 9.8 and newer add a penalty.
    server.start("LogLevel VERBOSE", f"HostKey {server.folder}/host_ed25519", "MaxAuthTries 4")
    keys = [server.folder / f"wrong-{number}" for number in range(2)]
    for key in keys:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    log = server.folder / "sshd.log"
    # sshd logs the connection with which the fixture saw that it listens, some time after that connection.
    assert eventually(lambda: "Connection closed by" in log.read_text(), 5), log.read_text()
    before = log.read_text()
    assert server.ours(server.config(known(server), "Host *", *(f"  IdentityFile {key}" for key in keys))) == ""
    new = log.read_text().removeprefix(before)
    assert new.count("Connection from ") == 1, new
    assert re.findall(r"^(\w+) publickey", new, re.MULTILINE) == ["Failed", "Failed", "Accepted"], new
    assert not re.search(r"(Connection (closed|reset)|Disconnected).*\[preauth\]", new), new


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Return a function that adds a key to an ssh-agent of this test."""
    path = tmp_path / "agent"
    process = subprocess.Popen([require("ssh-agent"), "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    assert eventually(path.exists, 5)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))

    def add(key: Path) -> None:
        subprocess.run([require("ssh-add"), "-q", str(key)], check=True, capture_output=True)

    yield add
    process.terminate()
    process.wait()


def test_right_key_is_offered_first_of_the_many_in_an_agent(server: Server, agent: Callable[[Path], None]) -> None:
    for number in range(7):
        key = server.folder / f"other-{number}"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        agent(key)
    agent(server.folder / "user")
    server.start(f"HostKey {server.folder}/host_ed25519", "MaxAuthTries 3")
    named = server.config(known(server), "Host *", f"  IdentityFile {server.folder}/user.pub")
    assert server.ours(named) == ""

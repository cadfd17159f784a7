"""Host keys: torchfab and OpenSSH's client accept and refuse the same, against the same real sshd."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import require
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError
from torchfab.core.specs import Node
from torchfab.transport import ssh
from torchfab.transport.messages.doctor import ClockRequest

ADDRESS = "127.0.0.1"
TYPES = {"ed25519": "256", "ecdsa": "256", "rsa": "2048"}


class Server:
    """A real sshd on loopback with keys of several types, the folder of its files, and an authorized user key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for kind, bits in TYPES.items():
            keygen("-q", "-t", kind, "-b", bits, "-N", "", "-f", str(folder / f"host_{kind}"))
        keygen("-q", "-t", "ed25519", "-N", "", "-f", str(folder / "ca"))
        keygen("-q", "-t", "ed25519", "-N", "", "-f", str(folder / "user"))
        keygen("-q", "-t", "ed25519", "-N", "", "-f", str(folder / "stranger"))
        with socket.create_server((ADDRESS, 0)) as free:
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def key(self, name: str) -> str:
        """Return a public key in known_hosts format."""
        return " ".join((self.folder / f"{name}.pub").read_text().split()[:2])

    def sign(self, *options: str) -> None:
        """Sign the ed25519 key by the authority."""
        keygen("-q", "-s", str(self.folder / "ca"), "-I", "the host", *options, str(self.folder / "host_ed25519.pub"))

    def start(self, *lines: str) -> None:
        """Restart it with more lines in its sshd_config."""
        self.stop()
        config = self.folder / "sshd_config"
        fixed = [
            f"ListenAddress {ADDRESS}:{self.port}",
            f"PidFile {self.folder}/pid",
            f"AuthorizedKeysFile {self.folder}/user.pub",
            *("StrictModes no", "UsePAM no", "PasswordAuthentication no", "LogLevel ERROR", "PermitRootLogin yes"),
        ]
        config.write_text("\n".join([*lines, *fixed, ""]))  # the first value of each counts
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd requires it when root runs it
        argv = (require("sshd"), "-D", "-E", str(self.folder / "sshd.log"), "-f", str(config))
        self.process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        for _ in range(500):
            try:
                socket.create_connection((ADDRESS, self.port), 1).close()
                return
            except OSError:
                time.sleep(0.01)
        raise AssertionError("sshd did not start")

    def stop(self) -> None:
        """Stop it."""
        if self.process:
            self.process.terminate()
            self.process.wait()

    def config(self, known: str, *lines: str) -> Path:
        """Write a client's ssh config that knows these lines, and no others; return its path."""
        (self.folder / "known").write_text(known)
        path = self.folder / "ssh_config"
        fixed = [
            "Host *",
            f"  UserKnownHostsFile {self.folder}/known",
            *(f"  GlobalKnownHostsFile {os.devnull}", f"  IdentityFile {self.folder}/user", "  IdentitiesOnly yes"),
            *(f"  User {getpass.getuser()}", "  BatchMode yes", "  LogLevel ERROR"),
        ]
        path.write_text("\n".join([*lines, *fixed, ""]))
        return path

    def ours(self, config: Path, host: str = ADDRESS) -> str:
        """Log in with torchfab; return its error, or an empty text."""
        node, settings = Node(0, host, port=self.port), ConnectionSettings(ssh_config=str(config), connect_timeout_s=5)
        try:
            session = ssh.open_session(ssh.NodeGroup([node], settings)[0], settings)
        except HostError as error:
            return str(error)
        try:
            assert session.request(ClockRequest(), 10).time
        finally:
            session.close()
        return ""

    def theirs(self, config: Path, host: str = ADDRESS) -> str:
        """Log in with OpenSSH; return its error, or an empty text."""
        argv = ["ssh", "-F", str(config), "-p", str(self.port), host, "true"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=20)
        return "" if done.returncode == 0 else done.stderr or "refused"


def keygen(*words: str) -> None:
    subprocess.run(["ssh-keygen", *words], check=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An sshd that offers all its keys."""
    require("ssh-keygen")
    made = Server(tmp_path_factory.mktemp("host"))
    made.start(*all_keys(made))
    yield made
    made.stop()


def all_keys(server: Server) -> list[str]:
    return [f"HostKey {server.folder}/host_{kind}" for kind in TYPES]


# name: lines of known_hosts ({here}: the name with the port), lines of ssh config, our error; empty: accepted
CASES = {
    "nobody is known": ("", "", "its host key is not known (ssh-ed25519 SHA256:"),
    "known": ("{here} {ed25519}", "", ""),
    "only the key of a type that is not preferred is known": ("{here} {rsa}", "", ""),
    "another such type": ("{here} {ecdsa}", "", ""),
    "several keys of one type": ("{here} {stranger}\n{here} {ed25519}", "", ""),
    "only the key of the other type is right": ("{here} {rsa}\n{here} {stranger}", "", "has CHANGED"),
    "changed": ("{here} {stranger}", "", "its host key has CHANGED: it now presents ssh-ed25519 SHA256:"),
    "changed, accept-new": ("{here} {stranger}", "StrictHostKeyChecking accept-new", "has CHANGED"),
    "changed, no": ("{here} {stranger}", "StrictHostKeyChecking no", ""),
    "new, yes": ("", "StrictHostKeyChecking yes", "is not known"),
    "new, off": ("", "StrictHostKeyChecking off", ""),
    "revoked": ("{here} {ed25519}\n@revoked * {ed25519}", "", "its host key is REVOKED ({known}:2)"),
    "another key is revoked": ("{here} {ed25519}\n@revoked * {stranger}", "", ""),
    "known without its port": ("127.0.0.1 {ed25519}", "", ""),
    "known otherwise without its port": ("127.0.0.1 {stranger}", "", "is not known"),
    "by pattern": ("[127.0.*]:* {ed25519}", "", ""),
    "by pattern, but not this one": ("[127.0.*]:*,!{here} {ed25519}", "", "is not known"),
    "of another name": ("elsewhere {ed25519}", "", "is not known"),
    "by alias": ("elsewhere {ed25519}", "HostKeyAlias elsewhere", ""),
    "an alias has no port": ("{here} {ed25519}", "HostKeyAlias elsewhere", "fab trust, which queries all hosts"),
    "a broken line before": ("{here} ssh-ed25519 AAA\n\n# {here}\n{here}\n{here} {ed25519}", "", ""),
    "hashed": ("{hashed} {ed25519}", "", ""),
    "hashed, of another": ("{hashed} {stranger}", "", "has CHANGED"),
    "in a second file": ("", "UserKnownHostsFile /no/such/file {second}", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_torchfab_accepts_the_host_keys_that_openssh_accepts(server: Server, case: str, tmp_path: Path) -> None:
    known, lines, expected = CASES[case]
    here, second = f"[{ADDRESS}]:{server.port}", tmp_path / "second"
    second.write_text(f"{here} {server.key('host_ed25519')}\n")
    words = {name: server.key(f"host_{name}") for name in TYPES}
    words |= {"here": here, "stranger": server.key("stranger"), "known": str(server.folder / "known")}
    words |= {"hashed": hashed(here, tmp_path), "second": str(second)}
    text, lines = known.format(**words), lines.format(**words)
    ours = server.ours(server.config(text, lines))
    theirs = server.theirs(server.config(text, lines))  # written again, because an accepted key is recorded
    assert expected.format(**words) in ours if expected else ours == ""
    assert bool(theirs) == bool(expected), theirs


def hashed(name: str, folder: Path) -> str:
    """Return a name hashed by ssh-keygen."""
    path = folder / "hashed"
    path.write_text(f"{name} ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJq6oLhgJ4SpjRTtNNYpVbhpeqQxOBTJMq1nEhL5qLhI\n")
    keygen("-q", "-H", "-f", str(path))
    return path.read_text().split()[0]


def test_a_revoked_key_is_refused_without_strict_checking(server: Server) -> None:
    # Here torchfab is stricter than OpenSSH, which connects with a warning.
    config = server.config(f"@revoked * {server.key('host_ed25519')}\n", "StrictHostKeyChecking no")
    assert "REVOKED" in server.ours(config)


def test_a_new_host_is_remembered_once_and_then_known(server: Server) -> None:
    config = server.config("# without an end", "StrictHostKeyChecking accept-new", "HashKnownHosts yes")
    assert server.ours(config) == ""
    assert server.ours(config) == ""
    first, second = (server.folder / "known").read_text().splitlines()
    assert first == "# without an end"
    assert second.startswith("|1|")
    assert server.theirs(server.config(second, "StrictHostKeyChecking yes")) == ""


def test_a_changed_key_is_reported_without_strict_checking(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    config = server.config(f"[{ADDRESS}]:{server.port} {server.key('stranger')}\n", "StrictHostKeyChecking no")
    assert server.ours(config) == ""
    assert "has CHANGED" in capsys.readouterr().err


# options of ssh-keygen -s, the authority's line, our error
CERTIFICATES = {
    "good": (("-h", "-n", ADDRESS), "@cert-authority * {ca}", ""),
    "for all names": (("-h",), "@cert-authority * {ca}", ""),
    "one of two names": (("-h", "-n", f"other,{ADDRESS}"), "@cert-authority {here} {ca}", ""),
    "names are no patterns": (("-h", "-n", "127.0.0.?"), "@cert-authority * {ca}", "it is for 127.0.0.?, not for"),
    "of another host": (("-h", "-n", "other"), "@cert-authority * {ca}", "it is for other, not for 127.0.0.1"),
    "expired": (("-h", "-n", ADDRESS, "-V", "20200101:20210101"), "@cert-authority * {ca}", "it has expired"),
    "not valid yet": (("-h", "-n", ADDRESS, "-V", "20990101:20990102"), "@cert-authority * {ca}", "is not valid yet"),
    "of a user": (("-n", ADDRESS), "@cert-authority * {ca}", "it is a user's, not a host's"),
    "authority of others": (("-h", "-n", ADDRESS), "@cert-authority other {ca}", "is not known"),
    "another authority": (("-h", "-n", ADDRESS), "@cert-authority * {stranger}", "is not known"),
    "revoked authority": (("-h", "-n", ADDRESS), "@cert-authority * {ca}\n@revoked * {ca}", "is REVOKED"),
    "its key is known anyway": (("-h", "-n", "other"), "{here} {ed25519}", ""),
    "an authority is no host": (("-h", "-n", ADDRESS), "{here} {ca}", "has CHANGED"),
}


@pytest.mark.parametrize("case", CERTIFICATES)
def test_host_certificates_are_verified_as_by_openssh(server: Server, case: str) -> None:
    options, known, expected = CERTIFICATES[case]
    server.sign(*options)
    server.start(*all_keys(server)[:1], f"HostCertificate {server.folder}/host_ed25519-cert.pub")
    try:
        words = {"here": f"[{ADDRESS}]:{server.port}", "ed25519": server.key("host_ed25519")}
        words |= {"ca": server.key("ca"), "stranger": server.key("stranger")}
        config = server.config(known.format(**words))
        ours, theirs = server.ours(config), server.theirs(config)
        assert expected in ours if expected else ours == ""
        assert bool(theirs) == bool(expected), theirs
    finally:
        server.start(*all_keys(server))


@pytest.mark.parametrize("algorithm", ["curve25519-sha256", "curve25519-sha256@libssh.org"])
def test_either_name_of_curve25519_works(server: Server, algorithm: str) -> None:
    server.start(*all_keys(server), f"KexAlgorithms {algorithm}")
    try:
        assert server.ours(server.config(f"{ADDRESS} {server.key('host_ed25519')}")) == ""
    finally:
        server.start(*all_keys(server))


# ---- other ssh options: a config that logs in with OpenSSH logs in with torchfab


@pytest.fixture(scope="module")
def agent(server: Server) -> Iterator[str]:
    """An ssh agent that has the user's key, and an unrelated key before it; its socket."""
    path = str(server.folder / "agent")
    with subprocess.Popen([require("ssh-agent"), "-D", "-a", path], stdout=subprocess.DEVNULL) as process:
        while not os.path.exists(path):
            time.sleep(0.01)
        keys = [str(server.folder / name) for name in ("stranger", "user")]
        subprocess.run(["ssh-add", "-q", *keys], env={**os.environ, "SSH_AUTH_SOCK": path}, check=True)
        yield path
        process.terminate()


CONFIGS = {
    "Include": ("Include {folder}/inc*", True),
    "Include within a block of another": ("Host other\n  Include {folder}/inc*", False),
    "Include within a block": ("Host 127.*\n  Include {folder}/inc*", True),
    "IdentityAgent": ("IdentityAgent {agent}\nIdentityFile none", True),
    "IdentityAgent none": ("IdentityAgent none\nIdentityFile none", False),
    "IdentityAgent of a variable": ("IdentityAgent $MY_AGENT\nIdentityFile none", True),
    "IdentitiesOnly": ("IdentitiesOnly yes\nIdentityAgent {agent}\nIdentityFile {folder}/stranger", False),
    "the agent's key, of which only the public half is here": (
        "IdentitiesOnly yes\nIdentityAgent {agent}\nIdentityFile {folder}/public",
        True,
    ),
    "a key that is missing": ("IdentityFile {folder}/missing\nIdentityFile {folder}/user", True),
    "ProxyCommand": ("ProxyCommand {python} {folder}/relay %h %p 2> /dev/null || x\nIdentityFile {folder}/user", True),
    "ProxyJump": ("Match host 127.0.0.1\n  ProxyJump hop\nHost *\nIdentityFile {folder}/user", True),
}
BEFORE = """Host hop
  HostName 127.0.0.1
  HostKeyAlias hop
  Port {port}
  IdentityFile {folder}/user
  ProxyJump none
"""
RELAY = """import os, select, socket, sys
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
ways = {0: peer.fileno(), peer.fileno(): 1}
while True:
    for source in select.select(list(ways), [], [])[0]:
        data = os.read(source, 65536)
        if not data:
            sys.exit()
        os.write(ways[source], data)
"""


@pytest.mark.parametrize("case", CONFIGS)
def test_login_options_of_ssh_config_are_followed(
    server: Server, agent: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, gets_in = CONFIGS[case]
    monkeypatch.setenv("MY_AGENT", agent)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    words = {"folder": server.folder, "agent": agent, "port": server.port, "python": sys.executable}
    (server.folder / "relay").write_text(RELAY)
    (server.folder / "include-me").write_text(f"IdentityFile {server.folder}/user\n")
    (server.folder / "public.pub").write_text((server.folder / "user.pub").read_text())
    known = f"hop {server.key('host_ed25519')}\n[{ADDRESS}]:{server.port} {server.key('host_ed25519')}\n"
    (server.folder / "known").write_text(known)
    config = server.folder / "login_config"
    fixed = f"UserKnownHostsFile {server.folder}/known\n  User {getpass.getuser()}\n  BatchMode yes\n  LogLevel ERROR\n"
    config.write_text(f"{BEFORE}Host *\n{lines}\nHost *\n  {fixed}".format(**words))
    ours, theirs = server.ours(config), server.theirs(config)
    assert (ours == "") is gets_in, ours
    assert (theirs == "") is gets_in, theirs


def test_the_key_of_a_jump_host_is_verified(server: Server) -> None:
    known = f"hop {server.key('stranger')}\n[{ADDRESS}]:{server.port} {server.key('host_ed25519')}\n"
    lines = [
        f"Host hop\n  HostName {ADDRESS}\n  HostKeyAlias hop\n  Port {server.port}",
        f"Host {ADDRESS}\n  ProxyJump hop",
    ]
    said = server.ours(server.config(known, *lines))
    assert said.startswith("its jump host hop:"), said
    assert "its host key has CHANGED" in said


def test_a_failing_proxy_command_is_reported_with_its_stderr(server: Server) -> None:
    said = server.ours(server.config("", "ProxyCommand echo no way >&2; exit 1"))
    assert "its ProxyCommand failed: no way" in said
    assert "fix: try it by hand: echo no way" in said


def test_a_certificate_of_a_user_logs_in(server: Server) -> None:
    keygen(
        "-q", "-s", str(server.folder / "ca"), "-I", "me", "-n", getpass.getuser(), str(server.folder / "stranger.pub")
    )
    server.start(*all_keys(server), f"TrustedUserCAKeys {server.folder}/ca.pub")
    try:
        stranger = f"{server.folder}/stranger"
        lines = f"IdentitiesOnly yes\nIdentityFile {stranger}\nCertificateFile {stranger}-cert.pub"
        config = server.config(f"{ADDRESS} {server.key('host_ed25519')}", lines)
        config.write_text(config.read_text().replace(f"  IdentityFile {server.folder}/user\n", ""))
        assert (server.ours(config), server.theirs(config)) == ("", "")
    finally:
        (server.folder / "stranger-cert.pub").unlink()
        server.start(*all_keys(server))


def test_connect_timeout_is_that_of_ssh_config(server: Server) -> None:
    with socket.create_server((ADDRESS, 0)) as silent:
        config = server.config(
            "", f"Host slow\n  HostName {ADDRESS}\n  Port {silent.getsockname()[1]}\n  ConnectTimeout 1"
        )
        node, settings = Node(0, "slow"), ConnectionSettings(ssh_config=str(config), connect_timeout_s=30)
        with pytest.raises(HostError, match="within 1 s"):
            ssh.open_session(ssh.NodeGroup([node], settings)[0], settings)


def test_an_unsupported_ssh_option_is_an_error_of_its_host_only(server: Server) -> None:
    config = server.config(f"{ADDRESS} {server.key('host_ed25519')}", "Host other\n  RevokedHostKeys /keys")
    nodes = [Node(0, ADDRESS, port=server.port), Node(1, "other")]
    settings = ConnectionSettings(ssh_config=str(config))
    made = ssh.NodeGroup(nodes, settings)
    ssh.open_session(made[0], settings).close()
    with pytest.raises(HostError, match="ssh_config:2: revokedhostkeys /keys is not supported"):
        ssh.open_session(made[1], settings)

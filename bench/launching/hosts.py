"""Many hosts on this machine: addresses of the loopback interface, sixteen per sshd, each with its own home and tmux.

`testbed` starts an sshd per host, which is more realistic but too expensive for a thousand hosts.
"""

from __future__ import annotations

import getpass
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

CURVE25519 = "curve25519-sha256,curve25519-sha256@libssh.org"
KEY_EXCHANGES = {"curve25519": f"KexAlgorithms {CURVE25519}\n", "default": ""}
_PER_SSHD = 16  # sshd accepts at most this many addresses
_PORTS = range(20022, 32768)  # below Linux's ephemeral ports


def addresses(count: int) -> list[str]:
    """Return the addresses of `count` hosts."""
    return [f"127.80.{index // 250}.{index % 250 + 1}" for index in range(count)]


@dataclass(frozen=True)
class Files:
    """Files that a client needs to reach the hosts.

    Parameters
    ----------
    folder : Path
        Folder of all files.
    hosts : tuple of str
        The addresses.
    """

    folder: Path
    hosts: tuple[str, ...]

    @property
    def ssh_config(self) -> Path:
        """For `ssh -F` and `fab -S`."""
        return self.folder / "ssh_config"

    @property
    def key(self) -> Path:
        """The private key that logs in."""
        return self.folder / "id"

    @property
    def known_hosts(self) -> Path:
        """The hosts' keys."""
        return self.folder / "known_hosts"

    @property
    def port(self) -> int:
        """The port of all hosts."""
        return int((self.folder / "port").read_text())

    def hostfile(self, count: int, lines: int = 1) -> Path:
        """Return a file with the first `count` hosts, each on `lines` lines."""
        path = self.folder / f"hosts-{count}x{lines}"
        path.write_text("".join(f"{host}\n" * lines for host in self.hosts[:count]))
        return path


class Hosts:
    """Running hosts; a context manager.

    Parameters
    ----------
    count : int
        Number of hosts.
    key_exchange : {"curve25519", "default"}
        Curve25519 only, or OpenSSH's default; for server and clients.
    """

    def __init__(self, count: int, key_exchange: str = "curve25519") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tfb-", dir="/tmp"))  # short, because tmux sockets are below it
        self.files = Files(self.folder, tuple(addresses(count)))
        self._write(key_exchange)
        self._start()

    def _write(self, key_exchange: str) -> None:
        port = _free_port(self.files.hosts)
        (self.folder / "port").write_text(str(port))
        _make_key(self.files.key)
        known = []
        for first in range(0, len(self.files.hosts), _PER_SSHD):
            some = self.files.hosts[first : first + _PER_SSHD]
            host_key = self.folder / f"key-{first}"
            public = _make_key(host_key)
            known += [f"[{host}]:{port} {public}\n" for host in some]
            (self.folder / f"{first}.conf").write_text(self._sshd_config(some, port, host_key, key_exchange))
        self.files.known_hosts.write_text("".join(known))
        self.files.ssh_config.write_text(
            f"Host *\n    Port {port}\n    User {getpass.getuser()}\n    IdentityFile {self.files.key}\n"
            f"    IdentitiesOnly yes\n    UserKnownHostsFile {self.files.known_hosts}\n    GlobalKnownHostsFile none\n"
            f"    StrictHostKeyChecking yes\n    BatchMode yes\n    {KEY_EXCHANGES[key_exchange]}"
        )

    def _sshd_config(self, some: Sequence[str], port: int, host_key: Path, key_exchange: str) -> str:
        lines = [
            *(f"ListenAddress {host}:{port}" for host in some),
            *(f"HostKey {host_key}", "PidFile none", f"AuthorizedKeysFile {self.files.key}.pub", "StrictModes no"),
            *("UsePAM no", "PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitUserRC no"),
            *("PrintMotd no", "PrintLastLog no", "UseDNS no", "MaxStartups 4000", "MaxSessions 1000"),
            "LogLevel ERROR",
        ]
        blocks = []
        for host in some:
            home = self.folder / host
            home.mkdir()
            (home / "tmux").mkdir(mode=0o700)
            blocks += [f"Match LocalAddress {host}", f"    SetEnv HOME={home} TMUX_TMPDIR={home}/tmux"]
        return "\n".join(lines) + "\n" + KEY_EXCHANGES[key_exchange] + "\n".join(blocks) + "\n"

    def _start(self) -> None:
        argv = [sys.executable, "-I", str(Path(__file__).with_name("holder.py")), str(self.folder)]
        self._holder = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._holder.stdout
        self._holder.stdout.readline()
        deadline = time.monotonic() + 60
        for host in self.files.hosts[::_PER_SSHD]:
            while not _answers(host, self.files.port):
                if time.monotonic() > deadline:
                    self.down()
                    raise RuntimeError(f"the sshd of {host} did not start")
                time.sleep(0.02)

    def ask(self, request: str) -> dict[str, Any]:
        """Send a request to the process that holds the hosts: `cpu`, `memory` or `clear`; return its answer."""
        assert self._holder.stdin
        assert self._holder.stdout
        self._holder.stdin.write(request + "\n")
        self._holder.stdin.flush()
        answer: dict[str, Any] = json.loads(self._holder.stdout.readline())
        return answer

    def down(self) -> None:
        """End all processes of the hosts, and remove their files."""
        assert self._holder.stdin
        self._holder.stdin.close()
        self._holder.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()


def _make_key(path: Path) -> str:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", str(path)]
    subprocess.run(argv, check=True)
    return " ".join(path.with_name(f"{path.name}.pub").read_text().split()[:2])


def _free_port(hosts: Sequence[str]) -> int:
    for port in _PORTS:
        with socket.socket() as probe:
            try:
                probe.bind((hosts[0], port))
            except OSError:
                continue
            return port
    raise RuntimeError("no port is free")


def _answers(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0

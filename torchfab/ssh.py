"""Connections: one to a node, and one interpreter on it, for all phases of a command.

The only module that imports Fabric's connections. `localhost` goes the same way through a local process.
"""

from __future__ import annotations

import logging
import os
import select
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torchfab import bundle
from torchfab.commandline import tell
from torchfab.errors import HostError, TorchfabError
from torchfab.job import Node
from torchfab.session import Session
from torchfab.settings import Settings

if TYPE_CHECKING:
    from torchfab.hostkeys import Rules

# What a process on `localhost` gets of this terminal's environment: what a login would set. The rest travels by name.
LOGIN_NAMES = (
    *("HOME", "PATH", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TMUX_TMPDIR", "XDG_RUNTIME_DIR"),
    *("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "SLURM_CONF"),
)
LOGIN_PREFIXES = ("LC_", "SBATCH_")


def open_session(node: Node, connection: Any, settings: Settings) -> Session:
    """Connect to a node and start the conversation.

    Parameters
    ----------
    node : Node
        The node.
    connection : fabric.Connection or None
        Made by `connections`; None for `localhost`.

    Raises
    ------
    HostError
        With the cause and its fix.
    """
    begun = time.monotonic()
    try:
        return Session(node, _LocalPipe() if connection is None else _SSHPipe(connection, settings))
    except HostError as error:
        hang_up(connection)
        error.address = error.address or (connection.host if connection else "")
        raise
    except Exception as error:
        hang_up(connection)
        in_time = time.monotonic() - begun < settings.connect_timeout_s - 0.05
        problem = explain(error, connection, settings, in_time)
        problem.address = connection.host if connection else ""
        raise problem from error


# ---- localhost


class _LocalPipe:
    """A program on this machine."""

    def __init__(self) -> None:
        names = [name for name in os.environ if name in LOGIN_NAMES or name.startswith(LOGIN_PREFIXES)]
        self.process = subprocess.Popen(
            bundle.argv(sys.executable),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: os.environ[name] for name in names},
            start_new_session=True,  # Ctrl-C in this terminal is for us alone
        )
        assert self.process.stdin
        assert self.process.stdout
        assert self.process.stderr
        self.stdin, self.stdout, self.stderr = self.process.stdin, self.process.stdout, self.process.stderr

    def write(self, data: bytes) -> None:
        self.stdin.write(data)
        self.stdin.flush()

    def read(self, timeout_s: float) -> bytes | None:
        readable, _, _ = select.select([self.stdout], [], [], timeout_s)
        return os.read(self.stdout.fileno(), 1 << 16) if readable else None

    def obituary(self) -> tuple[int | None, str]:
        try:
            self.stdin.close()
        except OSError:  # what it did not read is still in our buffer
            pass
        return self.process.wait(10), self.stderr.read().decode(errors="replace")

    def close(self) -> None:
        try:
            self.stdin.close()
        except OSError:  # it has ended before us
            pass
        self.process.wait()
        self.stdout.close()
        self.stderr.close()


# ---- ssh


class _SSHPipe:
    """A program on another machine, over one channel of one connection."""

    def __init__(self, connection: Any, settings: Settings) -> None:
        self.connection = connection
        self.send_timeout_s = settings.answer_timeout_s
        guard(connection, settings)
        connection.open()
        connection.transport.set_keepalive(15)
        self.channel = connection.transport.open_session(timeout=settings.connect_timeout_s)
        # The one place where words become shell: the login shell of the node reads this.
        self.channel.exec_command("exec " + shlex.join(bundle.argv(settings.agent_python)))

    def write(self, data: bytes) -> None:
        self.channel.settimeout(self.send_timeout_s)
        self.channel.sendall(data)

    def read(self, timeout_s: float) -> bytes | None:
        over = self.channel.closed or self.channel.eof_received
        if timeout_s <= 0 and not self.channel.recv_ready() and not over:
            return None
        self.channel.settimeout(max(timeout_s, 0.01))
        try:
            return bytes(self.channel.recv(1 << 16))
        except TimeoutError:
            return None

    def obituary(self) -> tuple[int | None, str]:
        stderr = b""
        self.channel.settimeout(2)
        try:
            while data := self.channel.recv_stderr(1 << 16):
                stderr += data
        except TimeoutError:
            pass
        # The exit code comes after the end of stdout, and -1 when the channel was closed without one. Where the
        # connection still stands then, the program was killed.
        code = self.channel.recv_exit_status() if self.channel.status_event.wait(2) else -1
        known = code >= 0 or self.connection.is_connected
        return (code if known else None), stderr.decode(errors="replace")

    def close(self) -> None:
        self.channel.close()
        hang_up(self.connection)


def connections(nodes: Sequence[Node], settings: Settings) -> dict[int, Any]:
    """Return a Fabric connection per node, not opened yet; None for `localhost`. Called before any thread is started.

    A fabric.Config is not safe between threads, so every connection has its own, and its own connect_kwargs.
    """
    remote = [node for node in nodes if not node.is_local]
    made: dict[int, Any] = {node.rank: None for node in nodes}
    if remote:
        config = _config(settings)
        made.update({node.rank: _connection(node, config, settings) for node in remote})
    return made


def _config(settings: Settings) -> Any:
    from fabric import Config

    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    logging.getLogger("paramiko").propagate = False
    config = Config(lazy=True, runtime_ssh_path=None)
    if settings.ssh_config:
        if not os.path.isfile(settings.ssh_config):
            raise TorchfabError(f"{settings.ssh_config}: there is no such ssh config file", "check fab -S")
        config.set_runtime_ssh_path(settings.ssh_config)
    config.load_ssh_config()
    return config


def _connection(node: Node, config: Any, settings: Settings) -> Any:
    from fabric import Connection

    timeout_s = settings.connect_timeout_s
    kwargs: dict[str, Any] = dict.fromkeys(("banner_timeout", "auth_timeout", "channel_timeout"), timeout_s)
    if settings.identities:
        kwargs["key_filename"] = list(settings.identities)
    return Connection(
        node.host,
        user=node.user or None,
        port=node.port,
        config=config.clone(),
        connect_timeout=max(1, round(timeout_s)),
        connect_kwargs=kwargs,
    )


def hops(connection: Any) -> list[Any]:
    """Return the connections through which a host is reached, the host's own last."""
    gateway = connection.gateway
    return [*(hops(gateway) if hasattr(gateway, "open") else ()), connection]


def hang_up(connection: Any) -> None:
    """Close a connection and those that it goes through, also one that came to nothing: sshd counts it till then."""
    for hop in reversed(hops(connection)) if connection else ():
        hop.client.close()


def label(connection: Any) -> str:
    """Return a jump host's name for people."""
    host = str(connection.original_host)
    return host if connection.port == 22 else f"{host}:{connection.port}"


def host_key(connection: Any, settings: Settings) -> tuple[Rules, Any]:
    """Return the key that a host shows, and the rules for it, without logging in there.

    Raises
    ------
    HostError
        It shows none, or a host on the way to it cannot be logged into.
    """
    begun = time.monotonic()
    try:
        return _host_key(connection, settings)
    except HostError:
        raise
    except Exception as error:
        in_time = time.monotonic() - begun < settings.connect_timeout_s - 0.05
        raise explain(error, connection, settings, in_time) from error


def _host_key(connection: Any, settings: Settings) -> tuple[Rules, Any]:
    from torchfab import hostkeys

    rules = guard(connection, settings)
    timeout_s = settings.connect_timeout_s
    address = (connection.host, connection.port)
    way = connection.open_gateway() if connection.gateway else socket.create_connection(address, timeout_s)
    transport = hostkeys.transport_factory(rules)(way)
    try:
        transport.banner_timeout = timeout_s
        transport.start_client(timeout=timeout_s)
        return rules, transport.get_remote_server_key()
    finally:
        transport.close()
        hang_up(connection)


def guard(connection: Any, settings: Settings) -> Rules:
    """Make a connection, and those that it goes through, refuse who shows a key that is not the host's.

    Raises
    ------
    HostError
        ssh's configuration of the host says what cannot be.
    """
    from torchfab import hostkeys

    for hop in hops(connection):
        hop.connect_timeout = hop.connect_timeout or connection.connect_timeout
        for name in ("banner_timeout", "auth_timeout", "channel_timeout"):
            hop.connect_kwargs.setdefault(name, settings.connect_timeout_s)
        rules = hostkeys.rules_of(hop.host, hop.port, hop.ssh_config, not hop.gateway)
        hop.client.set_missing_host_key_policy(hostkeys.Guard(rules, tell))
        hop.connect_kwargs["transport_factory"] = hostkeys.transport_factory(rules)
    return rules


def explain(error: Exception, connection: Any, settings: Settings, in_time: bool) -> HostError:
    """Return what went wrong with a connection, in plain words, with its fix."""
    if connection is None:
        return HostError(f"cannot start python here: {error}")
    import paramiko

    host, port, user = connection.host, connection.port, connection.user
    where = f"{host} port {port}"
    if isinstance(error, paramiko.PasswordRequiredException):
        return HostError(f"a private key for {user}@{host} has a passphrase", "unlock it in your agent: ssh-add")
    if isinstance(error, paramiko.AuthenticationException) or _is_key_file(error):
        missing = f" (there is no {error.filename})" if isinstance(error, FileNotFoundError) else ""
        return HostError(
            f"{user}@{host} was refused: none of your keys is accepted there{missing}",
            f"ssh-copy-id -p {port} {user}@{host}, or name a key with fab -i",
        )
    return _explain_network(error, where, settings, in_time)


def _is_key_file(error: Exception) -> bool:
    # paramiko ends with the last thing that went wrong, which may be a key file that is missing or unreadable.
    return isinstance(error, FileNotFoundError | PermissionError) and error.filename is not None


def _explain_network(error: Exception, where: str, settings: Settings, in_time: bool) -> HostError:
    import paramiko

    causes = list(getattr(error, "errors", {}).values()) or [error]
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return HostError(
            f"the name does not resolve ({where})", "check the hosts file, or give HostName in your ssh config"
        )
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return HostError(f"{where} refused the connection", "check that sshd runs there, and on which port")
    # When the time is up in the handshake, paramiko says "Error reading SSH protocol banner" or "No existing session".
    late = isinstance(error, paramiko.SSHException) and not in_time
    if late or any(isinstance(cause, TimeoutError) for cause in causes):
        return HostError(
            f"no answer from {where} within {settings.connect_timeout_s:g} s",
            "check that the node is up and that no firewall is between; a longer wait: fab -t SECONDS",
        )
    if isinstance(error, EOFError | paramiko.SSHException):
        return HostError(
            f"{where} did not finish the SSH handshake: {error or 'it closed the connection'}",
            "check that sshd listens there; its log says why it refuses (MaxStartups, when many log in at once)",
        )
    return HostError(f"no connection to {where}: {error or type(error).__name__}")

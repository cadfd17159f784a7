"""Connections: one to a node, and one interpreter on it, for all phases of a command.

The only module that imports Fabric's connections. `localhost` goes the same way through a local process.
"""

from __future__ import annotations

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
from torchfab.errors import HostError
from torchfab.job import Node
from torchfab.ssh import patience
from torchfab.ssh.patience import Patience
from torchfab.session import Session
from torchfab.settings import Settings

if TYPE_CHECKING:
    from torchfab.ssh.hostkeys import Rules

# What a process on `localhost` gets of this terminal's environment: what a login would set. The rest travels by name.
LOGIN_NAMES = (
    *("HOME", "PATH", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TMUX_TMPDIR", "XDG_RUNTIME_DIR"),
    *("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "SLURM_CONF"),
)
_MOST_STDERR = 1 << 18
LOGIN_PREFIXES = ("LC_", "SBATCH_")
# How long a program on this machine may take to end once we have hung up: it takes back what it has begun.
_END_S = 30.0


def open_session(node: Node, connection: Any, settings: Settings) -> Session:
    """Connect to a node and start the conversation.

    Parameters
    ----------
    node : Node
        The node.
    connection : Connection, HostError or None
        As `connections` gives it; None for `localhost`.

    Raises
    ------
    HostError
        With the cause and its fix.
    """
    if isinstance(connection, HostError):  # ssh's configuration knows no way there
        raise connection
    begun = time.monotonic()
    try:
        pipe = _LocalPipe() if connection is None else _SSHPipe(connection, settings)
        try:
            return Session(node, pipe, settings.answer_timeout_s)
        except BaseException:
            pipe.close()
            raise
    except Exception as error:
        if connection is not None:
            from torchfab.ssh import connecting

            connecting.hang_up(connection)
        problem = error if isinstance(error, HostError) else explain(error, connection, time.monotonic() - begun)
        problem.address = problem.address or (connection.host if connection else "")
        if problem is error:
            raise
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
        waiting, deadline = memoryview(data), time.monotonic() + _END_S
        while waiting:
            left_s = max(0.0, deadline - time.monotonic())
            if not select.select([], [self.stdin], [], left_s)[1]:
                raise HostError(f"torchfab's program here took nothing within {_END_S:g} s")
            waiting = waiting[os.write(self.stdin.fileno(), waiting[: select.PIPE_BUF]) :]

    def read(self, timeout_s: float) -> bytes | None:
        readable, _, _ = select.select([self.stdout], [], [], timeout_s)
        return os.read(self.stdout.fileno(), 1 << 16) if readable else None

    def obituary(self) -> tuple[int | None, str]:
        try:
            self.stdin.close()
        except OSError:  # what it did not read is still in our buffer
            pass
        code = self._end()
        os.set_blocking(self.stderr.fileno(), False)  # what it has left running may hold the other end
        return code, (self.stderr.read(_MOST_STDERR) or b"").decode(errors="replace")

    def _end(self) -> int:
        try:
            return self.process.wait(_END_S)
        except subprocess.TimeoutExpired:  # nothing of ours: our program ends when its stdin does
            self.process.kill()
            return self.process.wait()

    def close(self) -> None:
        try:
            self.stdin.close()
        except OSError:  # it has ended before us
            pass
        self._end()
        self.stdout.close()
        self.stderr.close()


# ---- ssh


class _SSHPipe:
    """A program on another machine, over one channel of one connection."""

    def __init__(self, connection: Any, settings: Settings) -> None:
        self.connection = connection
        self.send_timeout_s = settings.answer_timeout_s
        from torchfab.ssh import connecting

        open_way(connection)
        connecting.guard(connection)
        self.patience = log_in(connection)
        connecting.let_sleep(connection)
        connection.transport.set_keepalive(15)
        with self.patience.at_most(connection.timeout_s, patience.CHANNEL):
            self.channel = connection.transport.open_session(timeout=connection.timeout_s + 1)
        with self.patience.at_most(connection.timeout_s, patience.COMMAND):
            # The one place where words become shell: the login shell of the node reads this.
            self.channel.exec_command("exec " + shlex.join(bundle.argv(settings.agent_python)))

    def write(self, data: bytes) -> None:
        try:
            with self.patience.at_most(self.send_timeout_s, patience.INPUT):
                self.channel.settimeout(self.send_timeout_s + 1)
                self.channel.sendall(data)
        except (EOFError, OSError) as error:
            if self.patience.stuck:
                raise _stalled(self.patience.stuck, self.connection, self.send_timeout_s) from error
            raise OSError("the connection was closed") from error

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
            while len(stderr) < _MOST_STDERR and (data := self.channel.recv_stderr(1 << 16)):
                stderr += data
        except TimeoutError:
            pass
        # The exit code comes after the end of stdout, and -1 when the channel was closed without one. Where the
        # connection still stands then, the program was killed.
        code = self.channel.recv_exit_status() if self.channel.status_event.wait(2) else -1
        known = code >= 0 or self.connection.is_connected
        return (code if known else None), stderr.decode(errors="replace")

    def close(self) -> None:
        # Not the channel first: that would say so over a connection that may take no more.
        from torchfab.ssh import connecting

        connecting.hang_up(self.connection)


def connections(nodes: Sequence[Node], settings: Settings) -> dict[int, Any]:
    """Return what `open_session` takes, per node; see `torchfab.ssh.connecting`. Called before any thread is started."""
    if all(node.is_local for node in nodes):
        return {node.rank: None for node in nodes}
    from torchfab.ssh import connecting

    return dict(connecting.connections(nodes, settings))


def log_in(connection: Any) -> Patience:
    """Connect and log in; return what ends the later steps.

    Raises
    ------
    HostError
        The host accepted the connection, and then kept us waiting: with the step.
    """
    from torchfab.ssh import connecting

    client = connection.client
    watch = Patience(lambda: connecting.hang_up(connection), lambda: patience.handshake_step(client))
    connection.patience = watch
    # TCP, handshake and login have time-outs of their own, but each key that is tried has its own, too.
    with watch.at_most(3 * connection.timeout_s):
        try:
            connection.open()
        except Exception:
            watch.reached = patience.handshake_step(client)
            raise
    return watch


def open_way(connection: Any) -> None:
    """Log into the hosts that a host is reached through, the farthest first.

    Raises
    ------
    HostError
        One of them cannot be logged into.
    """
    from torchfab.ssh import connecting

    for hop in connecting.hops(connection)[:-1]:
        begun = time.monotonic()
        try:
            connecting.guard(hop)
            log_in(hop)
        except Exception as error:
            problem = error if isinstance(error, HostError) else explain(error, hop, time.monotonic() - begun)
            name = connecting.label(hop)
            raise HostError(f"its jump host {name}: {problem.message}", problem.fix, hop.host) from error


def host_key(connection: Any) -> tuple[Rules, Any]:
    """Return the key that a host shows, and the rules for it, without logging in there.

    Raises
    ------
    HostError
        It shows none, or a host on the way to it cannot be logged into.
    """
    from torchfab.ssh import connecting

    if isinstance(connection, HostError):
        raise connection
    begun = time.monotonic()
    try:
        open_way(connection)
        return connecting.host_key(connection)
    except HostError:
        raise
    except Exception as error:
        raise explain(error, connection, time.monotonic() - begun) from error
    finally:
        connecting.hang_up(connection)


def explain(error: Exception, connection: Any, took_s: float) -> HostError:
    """Return what went wrong with a connection, in plain words, with its fix."""
    if connection is None:
        return HostError(f"cannot start python here: {error}")
    import paramiko

    host, port, user = connection.host, connection.port, connection.user
    if step := _stalled_at(error, connection, took_s):
        return _stalled(step, connection, connection.timeout_s)
    if isinstance(error, paramiko.PasswordRequiredException):
        return HostError(f"a private key for {user}@{host} has a passphrase", "unlock it in your agent: ssh-add")
    refused = isinstance(error, paramiko.AuthenticationException) or "No authentication methods" in str(error)
    if refused or _is_key_file(error):
        absent = [key for key in connection.keys if not os.path.exists(key)]
        missing = f" (there is no {', '.join(absent)})" if absent else ""
        return HostError(
            f"{user}@{host} was refused: none of your keys is accepted there{missing}",
            f"ssh-copy-id -p {port} {user}@{host}, or name a key with fab -i",
        )
    return _explain_network(error, f"{host} port {port}", connection, took_s)


def _stalled_at(error: Exception, connection: Any, took_s: float) -> str:
    """Return at which step a host that had accepted the connection let the time pass; empty where it did not.

    paramiko says "Error reading SSH protocol banner" then, "No existing session", or "Authentication timeout".
    """
    import paramiko

    watch = connection.patience
    if watch is None or watch.stuck:
        return watch.stuck if watch else ""
    late = took_s >= connection.timeout_s - 0.05
    if isinstance(error, paramiko.AuthenticationException):
        late = "timeout" in str(error).lower()
    return str(watch.reached) if late and isinstance(error, paramiko.SSHException) else ""


def _stalled(step: str, connection: Any, timeout_s: float) -> HostError:
    return HostError(
        f"no answer from {connection.host} port {connection.port} within {timeout_s:g} s: {step}",
        "see there whether sshd is overloaded, and its log; a longer wait: fab -t SECONDS",
    )


def _is_key_file(error: Exception) -> bool:
    # paramiko ends with the last thing that went wrong, which may be a key file that is missing or unreadable.
    return isinstance(error, FileNotFoundError | PermissionError) and error.filename is not None


def _explain_network(error: Exception, where: str, connection: Any, took_s: float) -> HostError:
    import paramiko

    causes = list(getattr(error, "errors", {}).values()) or [error]
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return HostError(
            f"the name does not resolve ({where})", "check the hosts file, or give HostName in your ssh config"
        )
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return HostError(f"{where} refused the connection", "check that sshd runs there, and on which port")
    late = isinstance(error, paramiko.SSHException) and took_s >= connection.timeout_s - 0.05
    if late or any(isinstance(cause, TimeoutError) for cause in causes):
        return HostError(
            f"no answer from {where} within {connection.timeout_s:g} s",
            "check that the node is up and that no firewall is between; a longer wait: fab -t SECONDS",
        )
    if connection.proxy is not None:
        said = f": {connection.proxy.last_words}" if connection.proxy.last_words else f": {error}"
        return HostError(f"its ProxyCommand came to nothing{said}", f"try it by hand: {connection.gateway}")
    if isinstance(error, EOFError | paramiko.SSHException):
        return HostError(
            f"{where} did not finish the SSH handshake: {error or 'it closed the connection'}",
            "check that sshd listens there; its log says why it refuses (MaxStartups, when many log in at once)",
        )
    return HostError(f"no connection to {where}: {error or type(error).__name__}")

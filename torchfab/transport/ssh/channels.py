"""Byte channels to torchfab's program on a node: a process on this machine, or an SSH channel to another one."""

from __future__ import annotations

import logging
import os
import select
import shlex
import subprocess
import sys
import time
from typing import IO, Any

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError
from torchfab.transport import bundle
from torchfab.transport.ssh import step_timeout
from torchfab.transport.ssh.errors import stalled
from torchfab.transport.ssh.login import log_in, prepare

# A process on `localhost` inherits only these variables of this terminal's environment: those that a login would set.
# All others are forwarded by name.
LOGIN_NAMES = (
    *("HOME", "PATH", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TMUX_TMPDIR", "XDG_RUNTIME_DIR"),
    *("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "SLURM_CONF"),
)
_MOST_STDERR = 1 << 18
_log = logging.getLogger(__name__)
LOGIN_PREFIXES = ("LC_", "SBATCH_")
# How long a program on this machine may take to end after its stdin was closed: it rolls back an unfinished launch.
_END_S = 30.0


class LocalChannel:
    """A process on this machine that runs torchfab's program."""

    def __init__(self) -> None:
        names = [name for name in os.environ if name in LOGIN_NAMES or name.startswith(LOGIN_PREFIXES)]
        self.process = subprocess.Popen(
            bundle.argv(sys.executable),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: os.environ[name] for name in names},
            start_new_session=True,  # Ctrl-C in this terminal must not reach it
        )
        assert self.process.stdin
        assert self.process.stdout
        assert self.process.stderr
        self.stdin, self.stdout, self.stderr = self.process.stdin, self.process.stdout, self.process.stderr
        _log.debug("interpreter: started %s on this machine, pid %d", sys.executable, self.process.pid)

    def write(self, data: bytes) -> None:
        """Write bytes to the program's stdin.

        Parameters
        ----------
        data : bytes
            What to send; all of it is written.

        Raises
        ------
        HostError
            The program did not read it within 30 s.
        """
        unsent, deadline = memoryview(data), time.monotonic() + _END_S
        while unsent:
            left_s = max(0.0, deadline - time.monotonic())
            if not _is_ready(self.stdin, select.POLLOUT, left_s):
                raise HostError(f"torchfab's program here read nothing within {_END_S:g} s")
            unsent = unsent[os.write(self.stdin.fileno(), unsent[: select.PIPE_BUF]) :]

    def read(self, timeout_s: float) -> bytes | None:
        """Read from the program's stdout.

        Parameters
        ----------
        timeout_s : float
            How long to wait, in seconds.

        Returns
        -------
        bytes or None
            At most 64 KiB; empty at the end of the output, None if nothing arrived in time.
        """
        return os.read(self.stdout.fileno(), 1 << 16) if _is_ready(self.stdout, select.POLLIN, timeout_s) else None

    def exit_status(self) -> tuple[int | None, str]:
        """Close stdin and wait for the program to end.

        Returns
        -------
        tuple of int or None, and str
            The exit code, and the program's stderr.
        """
        try:
            self.stdin.close()
        except OSError:  # the buffer still holds data that the program did not read
            pass
        code = self._wait()
        os.set_blocking(self.stderr.fileno(), False)  # a process that it left running may hold the other end open
        return code, (self.stderr.read(_MOST_STDERR) or b"").decode(errors="replace")

    def _wait(self) -> int:
        try:
            return self.process.wait(_END_S)
        except subprocess.TimeoutExpired:  # not torchfab's program, which ends when its stdin is closed
            self.process.kill()
            return self.process.wait()

    def close(self) -> None:
        """Close stdin, wait for the program to end, and close the other pipes."""
        try:
            self.stdin.close()
        except OSError:  # the program has ended already
            pass
        self._wait()
        self.stdout.close()
        self.stderr.close()


def _is_ready(file: IO[bytes], event: int, timeout_s: float) -> bool:
    """Whether a file can be read or written in time; select(2) is limited to descriptors below 1024, poll(2) is not."""
    poll = select.poll()
    poll.register(file, event)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))


class SSHChannel:
    """An SSH channel to a process on another machine that runs torchfab's program.

    Parameters
    ----------
    connection : Connection
        Not open yet; the constructor opens it and its jump hosts.
    settings : ConnectionSettings
        Timeouts, and the interpreter on the node.
    """

    def __init__(self, connection: Any, settings: ConnectionSettings) -> None:
        self.connection = connection
        self.send_timeout_s = settings.answer_timeout_s
        prepare(connection)
        self.timeout = log_in(connection)
        connection.transport.let_sleep()
        connection.transport.set_keepalive(60)
        with self.timeout.at_most(connection.timeout_s, step_timeout.CHANNEL):
            self.channel = connection.transport.open_session(timeout=connection.timeout_s + 1)
        _log.debug("channel: open; starting the interpreter %s there", settings.agent_python)
        with self.timeout.at_most(connection.timeout_s, step_timeout.COMMAND):
            # The only place where an argv becomes shell text, because the login shell of the node parses it.
            self.channel.exec_command("exec " + shlex.join(bundle.argv(settings.agent_python)))
        _log.debug("interpreter: sshd runs the command")

    def write(self, data: bytes) -> None:
        """Write bytes to the program's stdin.

        Parameters
        ----------
        data : bytes
            What to send; all of it is written.

        Raises
        ------
        HostError
            The host did not read it within `answer_timeout_s`.
        OSError
            The connection was closed.
        """
        try:
            with self.timeout.at_most(self.send_timeout_s, step_timeout.INPUT):
                self.channel.settimeout(self.send_timeout_s + 1)
                self.channel.sendall(data)
        except (EOFError, OSError) as error:
            if self.timeout.stalled_step:
                raise stalled(self.timeout.stalled_step, self.connection, self.send_timeout_s) from error
            raise OSError("the connection was closed") from error

    def read(self, timeout_s: float) -> bytes | None:
        """Read from the program's stdout.

        Parameters
        ----------
        timeout_s : float
            How long to wait, in seconds.

        Returns
        -------
        bytes or None
            At most 64 KiB; empty at the end of the output, None if nothing arrived in time.
        """
        at_end = self.channel.closed or self.channel.eof_received
        if timeout_s <= 0 and not self.channel.recv_ready() and not at_end:
            return None
        self.channel.settimeout(max(timeout_s, 0.01))
        try:
            return bytes(self.channel.recv(1 << 16))
        except TimeoutError:
            return None

    def exit_status(self) -> tuple[int | None, str]:
        """Wait at most 2 s each for stderr and the exit code.

        Returns
        -------
        tuple of int or None, and str
            The exit code, None if the connection was lost without one; and the program's stderr.
        """
        stderr = b""
        self.channel.settimeout(2)
        try:
            while len(stderr) < _MOST_STDERR and (data := self.channel.recv_stderr(1 << 16)):
                stderr += data
        except TimeoutError:
            pass
        # The exit code comes after the end of stdout; it is -1 when the channel was closed without one. If the
        # connection is still open then, the program was killed.
        code = self.channel.recv_exit_status() if self.channel.status_event.wait(2) else -1
        known = code >= 0 or self.connection.is_connected
        return (code if known else None), stderr.decode(errors="replace")

    def close(self) -> None:
        """Close the connection and those to its jump hosts."""
        # The channel is not closed first: that sends a message, and the connection may accept no more data.
        from torchfab.transport.ssh import connect

        connect.close_connection(self.connection)

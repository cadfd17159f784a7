"""What a conversation with a program goes over: a process on this machine, or a channel to another one."""

from __future__ import annotations

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
from torchfab.transport.ssh.login import log_in, open_jump_hosts

# What a process on `localhost` gets of this terminal's environment: what a login would set. The rest travels by name.
LOGIN_NAMES = (
    *("HOME", "PATH", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TMUX_TMPDIR", "XDG_RUNTIME_DIR"),
    *("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "SLURM_CONF"),
)
_MOST_STDERR = 1 << 18
LOGIN_PREFIXES = ("LC_", "SBATCH_")
# How long a program on this machine may take to end once we have hung up: it takes back what it has begun.
_END_S = 30.0


class LocalChannel:
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
            if not _is_ready(self.stdin, select.POLLOUT, left_s):
                raise HostError(f"torchfab's program here took nothing within {_END_S:g} s")
            waiting = waiting[os.write(self.stdin.fileno(), waiting[: select.PIPE_BUF]) :]

    def read(self, timeout_s: float) -> bytes | None:
        return os.read(self.stdout.fileno(), 1 << 16) if _is_ready(self.stdout, select.POLLIN, timeout_s) else None

    def exit_status(self) -> tuple[int | None, str]:
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


def _is_ready(file: IO[bytes], event: int, timeout_s: float) -> bool:
    """Say whether a file can be read, or written; select(2) knows none above 1023, and each host may hold one."""
    poll = select.poll()
    poll.register(file, event)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))


class SSHChannel:
    """A program on another machine, over one channel of one connection."""

    def __init__(self, connection: Any, settings: ConnectionSettings) -> None:
        self.connection = connection
        self.send_timeout_s = settings.answer_timeout_s
        from torchfab.transport.ssh import connect

        open_jump_hosts(connection)
        connect.guard(connection)
        self.timeout = log_in(connection)
        connection.transport.let_sleep()
        connection.transport.set_keepalive(60)
        with self.timeout.at_most(connection.timeout_s, step_timeout.CHANNEL):
            self.channel = connection.transport.open_session(timeout=connection.timeout_s + 1)
        with self.timeout.at_most(connection.timeout_s, step_timeout.COMMAND):
            # The one place where words become shell: the login shell of the node reads this.
            self.channel.exec_command("exec " + shlex.join(bundle.argv(settings.agent_python)))

    def write(self, data: bytes) -> None:
        try:
            with self.timeout.at_most(self.send_timeout_s, step_timeout.INPUT):
                self.channel.settimeout(self.send_timeout_s + 1)
                self.channel.sendall(data)
        except (EOFError, OSError) as error:
            if self.timeout.stuck:
                raise stalled(self.timeout.stuck, self.connection, self.send_timeout_s) from error
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

    def exit_status(self) -> tuple[int | None, str]:
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
        from torchfab.transport.ssh import connect

        connect.hang_up(self.connection)

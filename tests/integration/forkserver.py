"""A `fab` that is forked from a process which has imported Fabric and torchfab: the suite types some two thousand.

What runs is the real program, in a process of its own that leads a session of its own, with the folder, environment and
pipes it is given. Only what every `fab` does first, half a second of importing, is done once for all of them.

A worker of the test run starts one `Parent` for each cluster, as the cluster's user, and sends it a request for each
`fab`: a file with the request, and the write ends of three pipes. The parent forks a watcher, which forks the `fab`,
and writes how it ended into the third pipe.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# What `fab` imports for the commands that tests type most.
IMPORTED = (
    *("fabric.main", "torchfab.launch.launch", "torchfab.runtimes.tmux", "torchfab.why.report"),
    *(f"torchfab.commands.{name}" for name in ("attach", "jobs", "launch", "logs", "status", "stop", "why")),
)

# What the way to the launch machine sets, whatever a request says.
SESSION = ("HOME", "USER", "LOGNAME", "SHELL", "TMUX_TMPDIR", "TORCHFAB_REHEARSAL")


class Parent:
    """The process that `fab`s are forked from.

    Parameters
    ----------
    argv : sequence of str
        This file's own program, as the cluster's user on the launch machine.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        self.channel = ours
        self.process = subprocess.Popen(
            argv,
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONUTF8": "1"},
            start_new_session=True,
        )
        theirs.close()

    def fork(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Warm:
        """Start `argv`, a `fab` with its words."""
        request = os.memfd_create("request")
        os.write(request, json.dumps({"argv": list(argv), "cwd": str(cwd), "env": dict(env)}).encode())
        pipes = [os.pipe() for _ in range(3)]
        sent = [request, *(write for _, write in pipes)]
        try:
            socket.send_fds(self.channel, [b"."], sent)
        finally:
            for descriptor in sent:
                os.close(descriptor)
        return Warm(argv, *(read for read, _ in pipes))

    def close(self) -> None:
        """Let it end."""
        self.channel.close()
        self.process.wait()


class Warm(subprocess.Popen[str]):
    """A `fab` that was forked, to be used as if it had been started."""

    def __init__(self, argv: Sequence[str], stdout: int, stderr: int, ended: int) -> None:
        self.args, self.stdin, self.returncode = list(argv), None, None
        self.stdout = open(stdout, errors="surrogateescape")
        self.stderr = open(stderr, errors="surrogateescape")
        self._ended = open(ended)
        self.pid = int(self._ended.readline())
        self._read: dict[str, str] = {}
        self._readers: list[threading.Thread] = []

    def poll(self) -> int | None:
        """Return its exit code if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit code."""
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._ended.readline())
            self._ended.close()
        return self.returncode

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:  # noqa: A002
        """Read what it prints until it has ended; return that."""
        assert input is None
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._readers:
            self._readers = [threading.Thread(target=self._take, args=(name,)) for name in ("stdout", "stderr")]
            for reader in self._readers:
                reader.start()
        for reader in self._readers:
            reader.join(_left(deadline))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(_left(deadline))
        return self._read["stdout"], self._read["stderr"]

    def _take(self, name: str) -> None:
        with getattr(self, name) as stream:
            self._read[name] = stream.read()


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


# ---- the parent's own side


def serve(channel: socket.socket) -> None:
    """Fork a `fab` for each request, until nobody can send one any more; return in each of the forked only."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # watchers are nobody's business
    while True:
        sent, descriptors, _, _ = socket.recv_fds(channel, 1, 4)
        if not sent:
            sys.exit()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            channel.close()
            become(*descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)


def become(request: int, stdout: int, stderr: int, ended: int) -> None:
    """Fork, and return in the child, which is set up as the request says; the watcher writes how that ended."""
    if pid := os.fork():
        for descriptor in (request, stdout, stderr):
            os.close(descriptor)
        _, status = os.waitpid(pid, 0)
        os.write(ended, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    os.setsid()
    os.write(ended, f"{os.getpid()}\n".encode())
    os.close(ended)
    with open(request, encoding="utf-8") as file:
        file.seek(0)
        asked: dict[str, Any] = json.load(file)
    redirect(stdout, stderr)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv = asked["argv"]


def redirect(stdout: int, stderr: int) -> None:
    """Let the standard streams be nothing, and these two pipes."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, standard in ((nothing, 0), (stdout, 1), (stderr, 2)):
        os.dup2(descriptor, standard)
        os.close(descriptor)


def main() -> None:
    """Import, then be a `fab` for each request."""
    way = {name: os.environ[name] for name in SESSION if name in os.environ}
    sys.path[0] = str(ROOT)
    for name in IMPORTED:
        importlib.import_module(name)
    serve(socket.socket(fileno=os.dup(0)))
    os.environ.update(way)
    sys.path[0] = str(Path(sys.argv[0]).parent)
    sys.exit(importlib.import_module("fabric.main").program.run())


if __name__ == "__main__":
    main()

"""Fork `fab` from a process that has imported Fabric and torchfab: the suite runs about two thousand.

Each runs the real program, as the leader of its own session, with the given folder, environment and pipes. Only the
imports that every `fab` begins with, half a second, are done once for all.

A worker of the test run starts one `Parent` per cluster, as the cluster's user, and sends it a request per `fab`: a
file with the request, and the write ends of three pipes. The parent forks a watcher. The watcher forks the `fab` and
writes its exit code into the third pipe.
"""

from __future__ import annotations

import contextlib
import gc
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
# Modules of the commands that tests run most.
IMPORTED = (
    *("fabric.main", "torchfab.launching.launch", "torchfab.runtimes.tmux", "torchfab.why.report"),
    *(f"torchfab.commands.{name}" for name in ("attach", "jobs", "launch", "logs", "status", "stop", "why")),
)

# Variables of the launch machine's session; a request does not override them.
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

    def fork(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str]) -> ForkedProcess:
        """Start `argv`, a `fab` with its arguments."""
        request = os.memfd_create("request")
        os.write(request, json.dumps({"argv": list(argv), "cwd": str(cwd), "env": dict(env)}).encode())
        pipes = [os.pipe() for _ in range(3)]
        sent = [request, *(write for _, write in pipes)]
        try:
            socket.send_fds(self.channel, [b"."], sent)
        finally:
            for descriptor in sent:
                os.close(descriptor)
        return ForkedProcess(argv, *(read for read, _ in pipes))

    def close(self) -> None:
        """End the process."""
        self.channel.close()
        self.process.wait()


class ForkedProcess(subprocess.Popen[str]):
    """A forked `fab`, with the interface of Popen."""

    def __init__(self, argv: Sequence[str], stdout: int, stderr: int, ended: int) -> None:
        self.args, self.stdin, self.returncode = list(argv), None, None
        self.stdout = open(stdout, errors="surrogateescape")
        self.stderr = open(stderr, errors="surrogateescape")
        self._ended = open(ended)
        self.pid = int(self._ended.readline())
        self._read: dict[str, str] = {}
        self._readers: list[threading.Thread] = []

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code."""
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._ended.readline())
            self._ended.close()
        return self.returncode

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:  # noqa: A002
        """Read stdout and stderr until the end; return them."""
        assert input is None
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._readers:
            self._readers = [threading.Thread(target=self._read_stream, args=(name,)) for name in ("stdout", "stderr")]
            for reader in self._readers:
                reader.start()
        for reader in self._readers:
            reader.join(_left(deadline))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(_left(deadline))
        return self._read["stdout"], self._read["stderr"]

    def _read_stream(self, name: str) -> None:
        with getattr(self, name) as stream:
            self._read[name] = stream.read()


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


# ---- in the parent


def serve(channel: socket.socket) -> None:
    """Fork a `fab` per request, until the channel is closed; return only in the forked processes."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing waits for the watchers
    while True:
        sent, descriptors, _, _ = socket.recv_fds(channel, 1, 4)
        if not sent:
            sys.exit()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            channel.close()
            set_up_child(*descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)


def set_up_child(request: int, stdout: int, stderr: int, ended: int) -> None:
    """Fork; return in the child, set up by the request. The watcher writes its exit code."""
    if pid := os.fork():
        for descriptor in (request, stdout, stderr):
            os.close(descriptor)
        _, status = os.waitpid(pid, 0)
        os.write(ended, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup in front of pytest is not for `fab`
    os.write(ended, f"{os.getpid()}\n".encode())
    os.close(ended)
    with open(request, encoding="utf-8") as file:
        file.seek(0)
        values: dict[str, Any] = json.load(file)
    redirect(stdout, stderr)
    os.chdir(values["cwd"])
    os.environ.clear()
    os.environ.update(values["env"])
    sys.argv = values["argv"]


def redirect(stdout: int, stderr: int) -> None:
    """Set stdin to /dev/null, and stdout and stderr to these pipes."""
    null = os.open(os.devnull, os.O_RDONLY)
    for descriptor, standard in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(descriptor, standard)
        os.close(descriptor)


def main() -> None:
    """Import the modules, then run a `fab` per request."""
    session = {name: os.environ[name] for name in SESSION if name in os.environ}
    sys.path[0] = str(ROOT)
    for name in IMPORTED:
        importlib.import_module(name)
    # A `fab` that ends would walk through all objects of these modules, and so copy their memory: half of its CPU time.
    gc.freeze()
    serve(socket.socket(fileno=os.dup(0)))
    os.environ.update(session)
    sys.path[0] = str(Path(sys.argv[0]).parent)
    sys.exit(importlib.import_module("fabric.main").program.run())


if __name__ == "__main__":
    main()

"""Run a command on this node, and stream its output in lines.

If the launch machine sends a request or disconnects, or at the time limit, the command is ended with all its
descendants. If it ends by itself, the processes that it left in the background continue.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import time

from torchfab.remote import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from torchfab.remote.server import Server

_PR_SET_CHILD_SUBREAPER = 36
_READ_BYTES = 64 * 1024
_LONGEST_LINE_BYTES = 64 * 1024
_POLL_S = 0.05
_GRACE_S = 2.0  # between SIGTERM and SIGKILL
_KILL_S = 2.0  # for how long SIGKILL is repeated
_DRAIN_S = 0.5  # for output that has not arrived yet when the command has ended
_SHELL = "a shell's own command, such as ulimit, needs a shell: fab run -- bash -c 'ulimit -n'"


class Output:
    """One output stream of the command, in lines; only the beginning and the end of a long one.

    Of a line that was overwritten with carriage returns (a progress bar), only the last state is kept.

    Parameters
    ----------
    most_bytes : int
        How many bytes to keep: half from the beginning, half from the end.
    """

    def __init__(self, most_bytes: int) -> None:
        self.half = most_bytes // 2
        self.room = self.half
        self.rest = bytearray()  # after the lines that were returned
        self.dropped = 0

    def feed(self, data: bytes) -> list[str]:
        """Add bytes.

        Parameters
        ----------
        data : bytes
            The bytes that were read.

        Returns
        -------
        list of str
            The lines that are complete, without their ends.
        """
        self.rest += data
        if self.room <= 0:
            if len(self.rest) > 2 * self.half:
                self._drop(len(self.rest) - self.half)
            return []
        self.room -= len(data)
        lines = bytes(self.rest).split(b"\n")
        self.rest = bytearray(lines.pop())
        if len(self.rest) >= _LONGEST_LINE_BYTES:
            lines.append(bytes(self.rest))
            self.rest.clear()
        return [_text(line) for line in lines]

    def finish(self) -> list[str]:
        """Return the last lines, preceded by a line with the number of bytes left out before them.

        Returns
        -------
        list of str
            The lines.
        """
        if len(self.rest) > self.half:
            self._drop(len(self.rest) - self.half)
        lines = bytes(self.rest).split(b"\n")
        if not lines[-1]:
            lines.pop()
        shown = [_text(line) for line in lines]
        return [f"[{self.dropped} bytes left out here]", *shown] if self.dropped else shown

    def _drop(self, count: int) -> None:
        del self.rest[:count]
        self.dropped += count
        line_end = self.rest.find(b"\n", 0, _LONGEST_LINE_BYTES)  # begin with a whole line
        if line_end >= 0:
            del self.rest[: line_end + 1]
            self.dropped += line_end + 1


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode(errors="replace")


def handle(request: dict[str, Any], server: Server) -> dict[str, Any]:
    """Run a command to its end, and send its output in frames.

    `{"out": [lines], "err": [lines]}`; at the end `{"end": {...}}`, or `{"problems": [...]}` if it did not start.

    Parameters
    ----------
    request : dict
        `argv`; `workdir`, an absolute path; `path`, folders to put in front of PATH; `env`, more variables;
        `timeout_s`, 0 for no limit; `most_bytes` of each output stream; `setup`, commands for the login shell (empty
        for none), `setup_timeout_s`, `python_is_default` (a Python that `setup` puts first on PATH replaces `path`).
    server : Server
        Sends the frames.

    Returns
    -------
    dict
        Empty.
    """
    become_subreaper()
    environ, problems = _environment(request)
    if problems or server.is_disconnected():
        return {"problems": problems or [{"what": "was not started", "fix": ""}]}
    try:
        process = _start(request, environ)
    except OSError as error:
        return {"problems": [_explain(error, request)]}
    run = _Run(process, request["most_bytes"], server)
    try:
        run.follow(request["timeout_s"])
    finally:  # the launch machine has disconnected: a frame could not be sent
        run.end_if_running()
    run.report()
    return {}


def become_subreaper() -> None:
    """Make this process the parent of all orphans among its descendants, so that it finds them."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _environment(request: dict[str, Any]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Return the environment of the command, and the problems of its setup."""
    path, environ = request["path"], dict(os.environ)
    if request.get("setup"):
        from torchfab.remote.host import login_setup

        try:
            environ = login_setup.run(request["setup"], request["workdir"], request["setup_timeout_s"], os.environ)
        except login_setup.SetupError as error:
            return {}, [{"what": error.what, "fix": error.fix}]
        if request["python_is_default"] and login_setup.find_python(os.environ, environ):
            path = []
    search = os.pathsep.join([*path, environ.get("PATH", os.defpath)])
    return {**environ, "PATH": search, **request["env"]}, []


def _start(request: dict[str, Any], environ: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        request["argv"],
        cwd=request["workdir"],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _explain(error: OSError, request: dict[str, Any]) -> dict[str, str]:
    """Return why a command could not be started, and how to fix it."""
    program, workdir = request["argv"][0], request["workdir"]
    file = os.path.join(workdir, program)
    if not os.path.isdir(workdir):
        fix = "copy it there: fab sync; or name a folder that exists there: --workdir /tmp"
        return {"what": f"the working directory {workdir} does not exist", "fix": fix}
    if os.path.isdir(file) and ("/" in program or isinstance(error, FileNotFoundError)):
        return {"what": f"{program} is a folder", "fix": "name a program or a script"}
    if isinstance(error, FileNotFoundError) and os.path.isfile(file) and "/" not in program:
        what = f"there is no program {program} on PATH; {file} is a file"
        return {"what": what, "fix": f"run it as ./{program}, or name what runs it: -- bash {program}"}
    if isinstance(error, FileNotFoundError):
        where = "" if "/" in program else " on PATH"
        return {"what": f"there is no program {program}{where}", "fix": f"install it there; {_SHELL}"}
    if isinstance(error, PermissionError):
        fix = f"chmod +x it there, or name what runs it: -- bash {program}"
        return {"what": f"{program} is not executable, or {workdir} cannot be entered", "fix": fix}
    return {
        "what": f"{program} cannot be run: {error.strerror or error}",
        "fix": f"name what runs it: -- bash {program}",
    }


class _Run:
    """A running command: its process, its output, and the reason of its end."""

    def __init__(self, process: subprocess.Popen[bytes], most_bytes: int, server: Server) -> None:
        assert process.stdout
        assert process.stderr
        self.process, self.server = process, server
        self.outputs = {
            process.stdout.fileno(): ("out", Output(most_bytes)),
            process.stderr.fileno(): ("err", Output(most_bytes)),
        }
        self.open = set(self.outputs)
        self.started = time.monotonic()
        self.timed_out = False
        self.stopped = False  # by the launch machine
        self.left: list[str] = []

    def follow(self, timeout_s: float) -> None:
        """Send the output until the command ends, the time limit passes, or the launch machine requests its end."""
        while self.process.poll() is None:
            if timeout_s and time.monotonic() - self.started > timeout_s:
                self.timed_out = True
                return
            if self._read(_POLL_S):
                self.stopped = True
                return
        deadline = time.monotonic() + _DRAIN_S  # a process in the background may keep the pipes open
        while self.open and time.monotonic() < deadline and not self._read(0.02):
            pass

    def _read(self, wait_s: float) -> bool:
        """Send the output that has arrived; return whether the launch machine requests the command's end."""
        if not self.open:  # the command has closed its output
            return self.server.is_disconnected(wait_s)
        poll = select.poll()
        for fd in (0, *self.open):
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(1000 * wait_s)}
        for fd in ready & self.open:
            name, output = self.outputs[fd]
            data = os.read(fd, _READ_BYTES)
            if not data:
                self.open.discard(fd)
            elif lines := output.feed(data):
                self.server.send({name: lines})
        return 0 in ready

    def end_if_running(self) -> None:
        """End the command and its descendants, unless it has ended by itself."""
        if self.process.poll() is None:
            self.left = end_descendants()
            self.process.poll()

    def report(self) -> None:
        """Send the rest of the output, and the end."""
        deadline = time.monotonic() + _DRAIN_S
        while (self.timed_out or self.stopped) and self.open and time.monotonic() < deadline:
            self._read(0.02)
        rest = {name: output.finish() for name, output in self.outputs.values()}
        end = {
            "code": self.process.returncode,
            "timed_out": self.timed_out,
            "stopped": self.stopped,
            "seconds": time.monotonic() - self.started,
            "dropped": sum(output.dropped for _, output in self.outputs.values()),
            "left": self.left,
        }
        self.server.send({**rest, "end": end})


def end_descendants() -> list[str]:
    """End all descendants of this process: SIGTERM, 2 seconds, SIGKILL.

    Returns
    -------
    list of str
        Descriptions of those that still run: processes of another user, or waiting for a device.
    """
    started = time.monotonic()
    signalled: set[int] = set()
    while (pids := procfs.descendants([os.getpid()])) and time.monotonic() - started < _GRACE_S + _KILL_S:
        is_over = time.monotonic() - started > _GRACE_S
        for pid in pids:
            if is_over:
                _signal(pid, signal.SIGKILL)
            elif pid not in signalled:
                signalled.add(pid)
                _signal(pid, signal.SIGTERM)
                _signal(pid, signal.SIGCONT)  # a stopped process would not handle it
        procfs.await_end(pids[:1], _POLL_S)
    return [f"{procfs.describe(pid)} of user {procfs.owner(pid)}" for pid in pids]


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:  # it has ended, or belongs to another user
        pass


def acknowledge(request: dict[str, Any]) -> dict[str, Any]:
    """Answer the request whose arrival has ended a command.

    Parameters
    ----------
    request : dict
        No keys.

    Returns
    -------
    dict
        Empty.
    """
    return {}

"""Run a program and return its output without importing `subprocess`, which takes as long as the program."""

from __future__ import annotations

import os
import select
import time

from torchfab.remote import child_process
from torchfab.remote.light_stdlib import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_POLL_S = 0.002


class ProgramTimeoutError(Exception):
    """A program did not end in time; it was killed."""


def run(
    argv: Sequence[str], timeout_s: float, cwd: str = "", env: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Run a program; call only from a single-threaded process.

    Parameters
    ----------
    argv : sequence of str
        The command line; the program is searched for on the PATH of its environment.
    timeout_s : float
        Seconds until it is killed.
    cwd : str
        The working directory. Default: that of this process.
    env : mapping of str to str, optional
        The whole environment. Default: that of this process.

    Returns
    -------
    tuple of (int, str, str)
        Its exit code, negative for a signal, its stdout and its stderr.

    Raises
    ------
    OSError
        The program cannot be started.
    ProgramTimeoutError
        The program did not end in time.
    """
    deadline = time.monotonic() + timeout_s
    readers, process = _start(argv, cwd or os.curdir, os.environ if env is None else env)
    try:
        outputs = _read(readers, deadline)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    finally:
        for reader in readers:
            os.close(reader)
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)
    if process.returncode is None:
        raise ProgramTimeoutError(f"{argv[0]} did not end within {timeout_s:g} s")
    out, errors = (b"".join(chunks).decode(errors="replace") for chunks in outputs)
    return process.returncode, out, errors


def _start(argv: Sequence[str], cwd: str, env: Mapping[str, str]) -> tuple[list[int], child_process.Child]:
    pipes = [os.pipe(), os.pipe()]

    def separate_errors() -> None:
        os.dup2(pipes[1][1], 2)

    try:
        process = child_process.start(argv, env, cwd, pipes[0][1], separate_errors)
    except OSError:
        for reader, _ in pipes:
            os.close(reader)
        raise
    finally:
        for _, writer in pipes:
            os.close(writer)
    return [reader for reader, _ in pipes], process


def _read(readers: list[int], deadline: float) -> list[list[bytes]]:
    """Return the data written to each pipe until all writers have closed them, or the deadline has passed."""
    found: dict[int, list[bytes]] = {reader: [] for reader in readers}
    poll = select.poll()
    for reader in readers:
        poll.register(reader, select.POLLIN)
    is_open = set(readers)
    while is_open and (left_s := deadline - time.monotonic()) > 0:
        for reader, _ in poll.poll(1000 * left_s):
            chunk = os.read(reader, 65536)
            found[reader].append(chunk)
            if not chunk:
                poll.unregister(reader)
                is_open.discard(reader)
    return list(found.values())

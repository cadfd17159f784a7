"""Run the rsync processes of one command, and terminate them together on Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import IO

from torchfab.sync import rsync

_MOST_STDERR = 1 << 20


class RsyncProcesses:
    """The running rsync processes, so that none outlives its command."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[bytes]] = set()

    def run(self, argv: Sequence[str], stdin: bytes = b"", progress: Callable[[str], None] | None = None) -> str:
        """Run one rsync to its end.

        Parameters
        ----------
        argv : sequence of str
            The command.
        stdin : bytes
            Its standard input. Default: empty.
        progress : callable, optional
            Called with each piece of its output. Default: none.

        Returns
        -------
        str
            Its standard output.

        Raises
        ------
        HostError
            rsync failed.
        """
        with tempfile.TemporaryFile() as given:
            given.write(stdin)
            given.seek(0)
            environ = {**os.environ, "LC_ALL": "C"}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            process = subprocess.Popen(argv, stdin=given, env=environ, **pipes)  # type: ignore[call-overload]
        self.running.add(process)
        try:
            stdout, stderr = _communicate(process, progress)
        finally:
            self.running.discard(process)
        if process.returncode:
            raise rsync.copy_error(process.returncode, stderr)
        return stdout

    def end(self) -> None:
        """Terminate the processes that still run."""
        for process in list(self.running):
            process.terminate()


def _communicate(process: subprocess.Popen[bytes], progress: Callable[[str], None] | None) -> tuple[str, str]:
    assert process.stdout
    assert process.stderr
    errors: list[bytes] = []
    reader = threading.Thread(target=_read_all, args=(process.stderr, errors), daemon=True)
    reader.start()
    out = bytearray()
    with process.stdout:
        while data := os.read(process.stdout.fileno(), 1 << 16):
            out += data
            if progress is not None:
                progress(data.decode(errors="replace"))
                del out[: -(1 << 16)]
    process.wait()
    reader.join()
    return out.decode(errors="replace"), b"".join(errors)[:_MOST_STDERR].decode(errors="replace")


def _read_all(file: IO[bytes], into: list[bytes]) -> None:
    with file:
        into += iter(lambda: file.read(1 << 16), b"")

"""The tmux window of a process, which shows new output of its log files and never blocks the process.

The window of the first process of a node is the supervisor's own. In each of the others a `cat` reads a FIFO, which
needs no interpreter and ends with the supervisor: the kernel then closes the FIFO.
"""

from __future__ import annotations

import os

from torchfab.remote import job_files, procfs
from torchfab.remote.job import log_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_CHUNK_BYTES = 64 * 1024


def viewer_argv(folder: str) -> list[str]:
    """Create the FIFO of a process and return the command that shows its content.

    Parameters
    ----------
    folder : str
        The process's folder.

    Returns
    -------
    list of str
        The command, for a tmux window; empty if the file system has no FIFOs: then there is no such window.
    """
    path = os.path.join(folder, job_files.WINDOW)
    try:
        os.mkfifo(path, 0o600)
    except OSError:
        return []
    return ["cat", path]


class Window:
    """Copy new content of log files into the window of a process, without ever blocking.

    Parameters
    ----------
    folder : str
        The process's folder.
    spec : dict
        Its spec; `rank_logs` decides whether lines of several ranks appear here and need a prefix.
    is_own : bool
        Whether it is the window that the supervisor itself runs in. Default True.

    Attributes
    ----------
    out : int
        The file descriptor that is written to; -1 without a window.
    is_viewer : bool
        Whether `out` is a FIFO. The kernel reports an error on it when the window is closed.
    """

    def __init__(self, folder: str, spec: dict[str, Any], is_own: bool = True) -> None:
        self.offsets: dict[str, int] = {}
        self.prefixed = bool(spec.get("rank_logs"))
        self.is_viewer = not is_own
        self.fifo = "" if is_own else os.path.join(folder, job_files.WINDOW)
        self.out = _open_terminal() if is_own else -1

    def open(self) -> None:
        """Open the FIFO, once `cat` has opened it."""
        if self.fifo:
            try:
                self.out = os.open(self.fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:  # there is no window
                self.fifo = ""
            except OSError:  # tmux has not started `cat` yet
                return
            self._remove_fifo()

    def _remove_fifo(self) -> None:
        try:
            os.unlink(self.fifo)
        except OSError:
            pass
        self.fifo = ""

    def close(self) -> None:
        """Let `cat` end, which also closes the window; nothing happens to the supervisor's own."""
        if self.fifo:
            # A `cat` that is just opening the FIFO waits for a writer.
            try:
                self.out = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                pass
            self._remove_fifo()
        if self.is_viewer:
            self.forget()

    def forget(self) -> None:
        """Stop writing, because the window was closed."""
        if self.is_viewer and self.out >= 0:
            os.close(self.out)
        self.out = -1

    def show(self, logs: list[log_files.LogFile], ranks: list[dict[str, Any]]) -> None:
        """Show what was appended to the log files since the last call; of a flood, only the end is shown.

        Parameters
        ----------
        logs : list of LogFile
            The log files of the process.
        ranks : list of dict
            The ranks found so far, for the prefix.
        """
        self.open()
        for log in logs if self.out >= 0 else ():
            chunk = self._next_chunk(log)
            if chunk:
                self.write(self._with_prefix(chunk, log.label(ranks)))

    def _next_chunk(self, log: log_files.LogFile) -> bytes:
        offset, end = self.offsets.get(log.path, 0), log_files.size(log.full_path)
        if end <= offset:
            return b""
        start = max(offset, end - _MAX_CHUNK_BYTES)
        try:
            with open(log.full_path, "rb") as file:
                file.seek(start)
                chunk = file.read(_MAX_CHUNK_BYTES)
        except OSError:  # removed meanwhile, or an unreachable disk: it must not end the supervisor
            return b""
        cut = chunk.rfind(b"\n") + 1 if self.prefixed else len(chunk)
        self.offsets[log.path] = start + (cut or len(chunk))
        return chunk[: cut or len(chunk)]

    def _with_prefix(self, chunk: bytes, label: int | str) -> bytes:
        if not self.prefixed:
            return chunk
        return b"".join(f"[{label}] ".encode() + line for line in chunk.splitlines(keepends=True))

    def write(self, data: bytes) -> None:
        """Write into the window, if there is one.

        Parameters
        ----------
        data : bytes
            The text; the part that the window cannot accept at once is lost.
        """
        try:
            os.write(self.out, data)
        except BlockingIOError:  # the viewer pressed Ctrl-S
            pass
        except OSError:  # there is no window, or it was closed
            if not self.is_viewer:  # for a viewer, poll(2) reports this to the supervisor
                self.out = -1


def is_tmux_running() -> bool:
    """Check whether the tmux server of the pane that this process runs in is still running.

    Returns
    -------
    bool
        False also outside tmux. The environment variable TMUX is "socket,pid,session".
    """
    parts = os.environ.get("TMUX", "").split(",")
    return len(parts) == 3 and parts[1].isdigit() and procfs.is_running(int(parts[1]))


def _open_terminal() -> int:
    try:
        return os.open(os.ttyname(1), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # stdout is not a terminal
        return -1

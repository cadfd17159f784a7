"""The supervisor's tmux window: shows new output of the process's log files and never blocks the process."""

from __future__ import annotations

import os

from torchfab.remote.job import log_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_CHUNK_BYTES = 64 * 1024


class Window:
    """Copy new content of log files to standard output, without ever blocking.

    Parameters
    ----------
    folder : str
        The process's folder.
    spec : dict
        Its spec; `rank_logs` decides whether lines of several ranks appear here and need a prefix.
    """

    def __init__(self, folder: str, spec: dict[str, Any]) -> None:
        self.offsets: dict[str, int] = {}
        self.prefixed = bool(spec.get("rank_logs"))
        try:
            self.out = os.open(os.ttyname(1), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:  # stdout is not a terminal
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
        for log in logs if self.out >= 0 else ():
            chunk = self._next_chunk(log)
            if chunk:
                self._write(self._with_prefix(chunk, log.label(ranks)))

    def _next_chunk(self, log: log_files.LogFile) -> bytes:
        offset, end = self.offsets.get(log.path, 0), log_files.size(log.full_path)
        if end <= offset:
            return b""
        start = max(offset, end - _MAX_CHUNK_BYTES)
        try:
            with open(log.full_path, "rb") as file:
                file.seek(start)
                chunk = file.read(_MAX_CHUNK_BYTES)
        except OSError:  # removed meanwhile, or an unreachable disk: no reason to end, and end the training too
            return b""
        cut = chunk.rfind(b"\n") + 1 if self.prefixed else len(chunk)
        self.offsets[log.path] = start + (cut or len(chunk))
        return chunk[: cut or len(chunk)]

    def _with_prefix(self, chunk: bytes, label: int | str) -> bytes:
        if not self.prefixed:
            return chunk
        return b"".join(f"[{label}] ".encode() + line for line in chunk.splitlines(keepends=True))

    def _write(self, data: bytes) -> None:
        try:
            os.write(self.out, data)
        except BlockingIOError:  # the viewer pressed Ctrl-S
            pass
        except OSError:  # the window is gone
            self.out = -1

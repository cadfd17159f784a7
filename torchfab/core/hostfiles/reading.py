"""Reading of a hosts file: a regular file, a pipe, or stdin; never without a limit of size and time."""

from __future__ import annotations

import codecs
import os
import select
import stat
import time
from pathlib import Path

from torchfab.core.errors import InventoryError

MAX_BYTES = 1_000_000
STDIN = "-"
PIPE_TIMEOUT_S = 60.0  # for the program that writes the hosts into a pipe


def read_text(path: Path, what: str = "a hosts file") -> str:
    """Return the text of a file.

    Parameters
    ----------
    path : Path
        The file; `-` for stdin.
    what : str
        The kind of file that is expected, for messages. Default: a hosts file.

    Returns
    -------
    str

    Raises
    ------
    InventoryError
        The file is missing, cannot be read, is too large, or is not text.
    """
    content = _read(path, what)
    if len(content) > MAX_BYTES:
        raise InventoryError(
            f"{name_of(path)}: larger than {MAX_BYTES // 1_000_000} MB: not {what}", "give another file"
        )
    try:
        text = content.decode(
            "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        )
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InventoryError(
            f"{name_of(path)}:{line}: not UTF-8 text (byte {error.start})", "save it as UTF-8, which has no such byte"
        ) from None
    if "\0" in text:
        fix = "save it as UTF-8"
        if what == "a hosts file":
            fix += f"; if it is a program, run it: … | fab … --hostfile {STDIN}"
        raise InventoryError(f"{name_of(path)}: not text: it contains NUL characters, as UTF-16 and programs do", fix)
    return text


def name_of(path: Path) -> str:
    """Return the name of a file for messages.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    str
    """
    return "stdin" if str(path) == STDIN else str(path)


def _read(path: Path, what: str) -> bytes:
    try:
        # open() must not block on a named pipe without a writer.
        descriptor = os.dup(0) if str(path) == STDIN else os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        hosts = "write one host per line into it, or give hosts with -H host1,host2; fab init writes one to fill in"
        fix = hosts if what == "a hosts file" else "give an existing file"
        raise InventoryError(f"{path}: there is no such file", fix) from None
    except OSError as error:
        raise InventoryError(f"{name_of(path)}: cannot be read: {error.strerror}") from None
    try:
        return _read_descriptor(path, descriptor, what)
    except OSError as error:
        raise InventoryError(f"{name_of(path)}: cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _read_descriptor(path: Path, descriptor: int, what: str) -> bytes:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        fix = f"give the file in it: {path}/hosts" if what == "a hosts file" else "give a file in it"
        raise InventoryError(f"{path}: is a folder, not {what}", fix)
    content = b""
    deadline = time.monotonic() + PIPE_TIMEOUT_S
    while len(content) <= MAX_BYTES:
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            _wait(path, descriptor, deadline)
        try:
            piece = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            continue
        if not piece:
            break
        content += piece
    return content


def _wait(path: Path, descriptor: int, deadline: float) -> None:
    """Wait until a pipe has data or is closed."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLHUP)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise InventoryError(
            f"{name_of(path)}: no data arrived through this pipe for {PIPE_TIMEOUT_S:.0f} s", "give a file"
        )

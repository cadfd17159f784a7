"""py-spy on a node: find an installed copy or unpack a copy that was sent, and run it for all ranks at once."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import threading
import zlib

from torchfab.remote import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "py-spy"
_LATE = "no answer from py-spy"


def find(beside: list[str]) -> tuple[str, str]:
    """Find an installed py-spy.

    Parameters
    ----------
    beside : list of str
        Folders to search first: those of the training interpreter.

    Returns
    -------
    str
        Its path; empty if it is not installed.
    str
        A description of its location; empty if it is not installed.
    """
    for folder in dict.fromkeys(beside):
        path = os.path.join(folder, NAME)
        if os.access(path, os.X_OK):
            return path, "beside the interpreter"
    found = shutil.which(NAME)
    return (found, "on the PATH") if found else ("", "")


def unpack(program: str, folder: str) -> str:
    """Write a py-spy that was sent to a folder from which programs can run.

    The local temporary folder comes first: the job's own is often on a file system that hundreds of nodes share.

    Parameters
    ----------
    program : str
        The program, compressed with zlib, in base64.
    folder : str
        The last folder to try.

    Returns
    -------
    str
        Its path; empty if it cannot run from any folder.
    """
    for parent in (os.environ.get("TMPDIR") or "/tmp", "/dev/shm", folder):
        own = os.path.join(parent, f"torchfab-{os.urandom(6).hex()}")
        path = os.path.join(own, NAME)
        try:
            os.mkdir(own, 0o700)
            write(program, own)
            if subprocess.run([path, "--version"], capture_output=True, check=False, timeout=20).returncode == 0:
                return path
        except (OSError, subprocess.SubprocessError):  # the disk is full, or mounted noexec
            pass
        remove(path)
    return ""


def write(program: str, folder: str) -> str:
    """Write a py-spy that was sent into a folder.

    Parameters
    ----------
    program : str
        As in `unpack`.
    folder : str
        An existing folder.

    Returns
    -------
    str
        Its path.
    """
    path = os.path.join(folder, NAME)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
    with os.fdopen(handle, "wb") as file:
        file.write(zlib.decompress(base64.b64decode(program)))
    return path


def remove(path: str) -> None:
    """Remove the folder that `unpack` made.

    Parameters
    ----------
    path : str
        The path that `unpack` returned.
    """
    if path:
        shutil.rmtree(os.path.dirname(path), ignore_errors=True)


def dump_all(path: str, entries: list[dict[str, Any]], native: bool, timeout_s: float) -> None:
    """Dump all processes at once; set `threads` and `by`, or `problem`.

    py-spy pauses a process while it reads its stacks. A process that is stopped, or in uninterruptible sleep in the
    kernel, cannot be paused and is read with --nonblocking.

    Parameters
    ----------
    path : str
        Path of py-spy.
    entries : list of dict
        As `dump.targets` returns them, with `state`.
    native : bool
        Whether to include native frames.
    timeout_s : float
        Time limit for each process in seconds.
    """
    threads = [threading.Thread(target=_dump, args=(path, entry, native, timeout_s)) for entry in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _dump(path: str, entry: dict[str, Any], native: bool, timeout_s: float) -> None:
    entry.update(threads=[], by="py-spy", problem="")
    nonblocking = entry["state"] in ("T", "D")
    try:
        if not nonblocking:
            out, entry["problem"] = _run(path, entry["pid"], ["--native"] if native else [], timeout_s)
        late = entry["problem"].startswith(_LATE)
        if nonblocking or late:
            out, entry["problem"] = _run(path, entry["pid"], ["--nonblocking"], timeout_s)
        if late:
            _resume(entry["pid"])
        if not entry["problem"]:
            entry["threads"] = parse_threads(json.loads(out), entry["pid"])
    except (OSError, ValueError) as error:
        entry["problem"] = str(error)


def _run(path: str, pid: int, options: list[str], timeout_s: float) -> tuple[bytes, str]:
    """Return the stdout of py-spy and its error, if any."""
    argv = [path, "dump", "--json", "--pid", str(pid), *options]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return b"", f"{_LATE} within {timeout_s:g} s"
    return done.stdout, "" if done.returncode == 0 else summarize_error(done.stderr.decode(errors="replace"))


def _resume(pid: int) -> None:
    # A py-spy that was killed while it paused the process can leave it stopped.
    if procfs.stat_fields(pid)[:1] == ["T"]:
        os.kill(pid, signal.SIGCONT)


def summarize_error(stderr: str) -> str:
    """Reduce the error output of py-spy to one line, without its own backtrace and advice.

    Parameters
    ----------
    stderr : str
        Its stderr.

    Returns
    -------
    str
        At most 400 characters.
    """
    kept = []
    for line in stderr.partition("Stack backtrace:")[0].splitlines():
        text = line.strip()
        if text and not text.startswith(("Caused by:", "Try running", "sudo ")):
            kept.append(text.split(": ", 1)[-1] if text[:1].isdigit() or text.startswith("Error:") else text)
    return ": ".join(dict.fromkeys(kept))[:400] or "py-spy failed without a message"


def parse_threads(dump: Any, pid: int) -> list[dict[str, Any]]:
    """Convert the output of `py-spy dump --json`.

    Parameters
    ----------
    dump : list
        Its decoded JSON.
    pid : int
        The process.

    Returns
    -------
    list of dict
        The threads, the main thread first; a frame is `[function, file, line]`.
    """
    main_first = sorted(dump, key=lambda thread: thread.get("os_thread_id") != pid)
    return [
        {
            "name": thread.get("thread_name") or str(thread.get("os_thread_id") or thread["thread_id"]),
            "active": bool(thread.get("active")),
            "gil": bool(thread.get("owns_gil")),
            "frames": [[frame["name"], frame["filename"], frame["line"]] for frame in thread["frames"]],
        }
        for thread in main_first
    ]

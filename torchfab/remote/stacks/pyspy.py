"""py-spy on a node: the copy that is there, or the one that was sent; run for all ranks of the node at once."""

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
    """Return the path of py-spy and where that is, beside the training's interpreter or on the PATH; or empty texts."""
    for folder in dict.fromkeys(beside):
        path = os.path.join(folder, NAME)
        if os.access(path, os.X_OK):
            return path, "beside the interpreter"
    found = shutil.which(NAME)
    return (found, "on the PATH") if found else ("", "")


def unpack(program: str, folder: str) -> str:
    """Write a py-spy that was sent (zlib, base64) where programs may run; return its path, empty if there is no place.

    The local temporary folder comes first: the job's own is often on a file system that hundreds of nodes share.
    """
    for parent in (os.environ.get("TMPDIR") or "/tmp", "/dev/shm", folder):
        own = os.path.join(parent, f"torchfab-{os.urandom(6).hex()}")
        path = os.path.join(own, NAME)
        try:
            os.mkdir(own, 0o700)
            write(program, own)
            if subprocess.run([path, "--version"], capture_output=True, check=False, timeout=20).returncode == 0:
                return path
        except (OSError, subprocess.SubprocessError):  # no room, or nothing may be run from there
            pass
        remove(path)
    return ""


def write(program: str, folder: str) -> str:
    """Write a py-spy that was sent into `folder`; return its path."""
    path = os.path.join(folder, NAME)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
    with os.fdopen(handle, "wb") as file:
        file.write(zlib.decompress(base64.b64decode(program)))
    return path


def remove(path: str) -> None:
    """Remove what `unpack` made."""
    if path:
        shutil.rmtree(os.path.dirname(path), ignore_errors=True)


def dump_all(path: str, entries: list[dict[str, Any]], native: bool, timeout_s: float) -> None:
    """Dump all processes at once; fill in `threads` and `by`, or `problem`.

    A process pauses while it is looked at. One that is stopped or that waits uninterruptibly in the kernel cannot be
    paused, and is read as it is.
    """
    threads = [threading.Thread(target=_dump, args=(path, entry, native, timeout_s)) for entry in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _dump(path: str, entry: dict[str, Any], native: bool, timeout_s: float) -> None:
    entry.update(threads=[], by="py-spy", problem="")
    as_it_is = entry["state"] in ("T", "D")
    try:
        if not as_it_is:
            out, entry["problem"] = _run(path, entry["pid"], ["--native"] if native else [], timeout_s)
        late = entry["problem"].startswith(_LATE)
        if as_it_is or late:
            out, entry["problem"] = _run(path, entry["pid"], ["--nonblocking"], timeout_s)
        if late:
            _let_go(entry["pid"])
        if not entry["problem"]:
            entry["threads"] = threads_of(json.loads(out), entry["pid"])
    except (OSError, ValueError) as error:
        entry["problem"] = str(error)


def _run(path: str, pid: int, more: list[str], timeout_s: float) -> tuple[bytes, str]:
    """Return what py-spy printed, and what went wrong, in its words."""
    argv = [path, "dump", "--json", "--pid", str(pid), *more]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return b"", f"{_LATE} within {timeout_s:g} s"
    return done.stdout, "" if done.returncode == 0 else complaint(done.stderr.decode(errors="replace"))


def _let_go(pid: int) -> None:
    # A py-spy that was killed while it held the process can leave it stopped.
    if procfs.stat_fields(pid)[:1] == ["T"]:
        os.kill(pid, signal.SIGCONT)


def complaint(stderr: str) -> str:
    """Return what py-spy says is wrong, in one line, without its own backtrace and advice."""
    kept = []
    for line in stderr.partition("Stack backtrace:")[0].splitlines():
        text = line.strip()
        if text and not text.startswith(("Caused by:", "Try running", "sudo ")):
            kept.append(text.split(": ", 1)[-1] if text[:1].isdigit() or text.startswith("Error:") else text)
    return ": ".join(dict.fromkeys(kept))[:400] or "py-spy failed without a word"


def threads_of(dump: Any, pid: int) -> list[dict[str, Any]]:
    """Return the threads of `py-spy dump --json`, the main thread first; a frame is `[function, file, line]`."""
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

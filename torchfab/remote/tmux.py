"""The private tmux server of torchfab on a node (`tmux -L torchfab`): one session per job and node.

Only words that are safe by construction reach tmux: session and window names of letters, digits, `-` and `_`, and the
path of `node.py`. Everything else (argv, environment, working directory) is in files, so that tmux's limit of 16 KB,
its format expansion (`#{...}`) and its reading of a trailing `;` never meet a user's text.
"""

from __future__ import annotations

import errno
import os
import re
import time

from torchfab.remote import procfs

SERVER = ("tmux", "-L", "torchfab")
OLDEST = (3, 2)
TIMEOUT_S = 10.0  # it answers in 10 ms
_MOST_BYTES = 14_000  # it refuses a message of more than 16,343 bytes
# Errors of a client that meets the server while it leaves, after its last session has ended.
_LEAVING = ("server exited unexpectedly", "lost server", "no server running", "error connecting")


class Unusable(Exception):
    """There is no tmux that runs; the message says why."""


def run(*words: str, timeout_s: float = TIMEOUT_S) -> tuple[int, str]:
    """Run one tmux command; return its exit code and what it printed."""
    return _run([*SERVER, *words], timeout_s)


def _run(argv: list[str], timeout_s: float) -> tuple[int, str]:
    import subprocess  # not for the supervisor, which asks only whether the server is alive

    try:
        done = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=max(0.1, timeout_s),
        )
    except subprocess.TimeoutExpired:
        return 124, f"tmux did not answer within {timeout_s:.0f} s"
    return done.returncode, done.stdout.strip()


def version() -> tuple[int, int]:
    """Return the version of tmux; (99, 0) for a development build without a number.

    Raises
    ------
    Unusable
        It is not installed, or does not run.
    """
    try:
        code, text = _run(["tmux", "-V"], TIMEOUT_S)
    except FileNotFoundError:
        raise Unusable("tmux is not installed") from None
    except OSError as error:
        raise Unusable(f"tmux does not run: {error.strerror}") from None
    if code:
        raise Unusable(f"tmux does not run: {text or f'tmux -V ended with {code}'}")
    match = re.search(r"([0-9]{1,6})\.([0-9]{1,6})", text)
    return (int(match[1]), int(match[2])) if match else (99, 0)


def has_session(session: str) -> bool:
    """Say whether the session exists, by its exact name."""
    return run("has-session", "-t", f"={session}")[0] == 0


def open_session(session: str, windows: list[tuple[str, list[str]]], timeout_s: float) -> str:
    """Open a detached session with one window per process; return an error text, empty when all went well.

    Parameters
    ----------
    session : str
        Name of the session.
    windows : list of (str, list of str)
        Name and argv of each window; an argv has two words at least, so that tmux starts it without a shell.
    timeout_s : float
        For all of them together.
    """
    deadline = time.monotonic() + timeout_s
    first, *others = _messages(session, windows)
    error = _open_first(first, timeout_s)
    for words in others:
        if error:
            return error
        code, text = run(*words, timeout_s=deadline - time.monotonic())
        error = text or f"tmux new-window ended with {code}" if code else ""
    return error


def _messages(session: str, windows: list[tuple[str, list[str]]]) -> list[list[str]]:
    """Return the commands that open a session with these windows, as few as tmux takes.

    In one message, a session is not closed by a first process that ends before the next window opens.
    """
    messages: list[list[str]] = []
    for name, argv in windows:
        # `-x -y`: a size for programs that ask before anyone attaches.
        opening = ["new-window", "-d", "-t", f"={session}:"] if messages else ["new-session", "-d", "-x", "200"]
        words = [*opening, *(["-n", name] if messages else ["-y", "50", "-s", session, "-n", name]), *argv]
        if messages and _size(messages[-1]) + _size(words) < _MOST_BYTES:
            messages[-1] += [";", *words]
        else:
            messages.append(words)
    return messages


def _size(words: list[str]) -> int:
    return sum(len(os.fsencode(word)) + 1 for word in words)


def _open_first(words: list[str], timeout_s: float) -> str:
    for attempt in range(10):
        code, text = run(*words, timeout_s=timeout_s)
        if code == 0:
            return ""
        if not any(sign in text for sign in _LEAVING):
            break
        time.sleep(0.05 * (attempt + 1))
    return text or f"tmux new-session ended with {code}"


def close_session(session: str) -> None:
    """Close a session, if it is there; after the last one, remove the socket that tmux leaves behind."""
    if not _listens(_socket()):  # the last process has ended, and the server with it
        _remove_stale_socket()
        return
    run("kill-session", "-t", f"={session}")
    for _ in range(10):
        if run("list-sessions")[0] == 0 or _remove_stale_socket():
            return
        time.sleep(0.02)  # the server is about to leave


def _socket() -> str:
    return os.path.join(os.environ.get("TMUX_TMPDIR") or "/tmp", f"tmux-{os.getuid()}", SERVER[2])


def _remove_stale_socket() -> bool:
    """Remove the socket of a server that has left, under the lock that tmux itself takes; say whether none is there.

    tmux's client.c: who would start a server locks the file beside the socket until the server listens.
    """
    import fcntl

    path = _socket()
    if not os.path.exists(path):
        return True
    lock = os.open(path + ".lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        listens = _listens(path)
        for each in [path + ".lock", *([] if listens else [path])]:
            os.unlink(each)
        return not listens
    except OSError:  # somebody starts a server at this moment, or was faster
        return True
    finally:
        os.close(lock)


def _listens(path: str) -> bool:
    import socket

    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True


def server_is_alive() -> bool:
    """Say whether the server of the pane that this process runs in is still there (TMUX is "socket,pid,session")."""
    parts = os.environ.get("TMUX", "").split(",")
    return len(parts) == 3 and parts[1].isdigit() and procfs.is_running(int(parts[1]))

"""The private tmux server of torchfab on a node (`tmux -L torchfab`): one session per job and node.

tmux gets only arguments that are safe by construction: session and window names of letters, digits, `-` and `_`, and
the path of `node.py`. Everything else (argv, environment, working directory) is in files, so that user text is not
affected by tmux's limit of 16 KB, its format expansion (`#{...}`) or its special meaning of a trailing `;`.
"""

from __future__ import annotations

import errno
import os
import time

from torchfab.remote import light_subprocess
from torchfab.remote.light_stdlib import socket

# Without any configuration file: those of the user and of the system are for their own servers. They can end sessions
# without a client, keep the server alive, or run commands that never end.
SERVER = ("tmux", "-L", "torchfab", "-f", "/dev/null")
SOCKET_NAME = "torchfab"
MIN_VERSION = (3, 2)
TIMEOUT_S = 10.0  # tmux normally answers in 10 ms
_MAX_MESSAGE_BYTES = 14_000  # tmux refuses a message of more than 16,343 bytes
# Errors of a client that connects while the server shuts down, after its last session has ended.
_SHUTDOWN_ERRORS = ("server exited unexpectedly", "lost server", "no server running", "error connecting")


class TmuxUnusableError(Exception):
    """tmux is missing or does not run; the message gives the reason."""


def run(*args: str, timeout_s: float = TIMEOUT_S) -> tuple[int, str]:
    """Run one tmux command.

    Parameters
    ----------
    *args : str
        The command and its arguments.
    timeout_s : float
        Seconds. Default 10.

    Returns
    -------
    tuple of (int, str)
        Its exit code (124 after a timeout), and its stdout and stderr.
    """
    return _run([*SERVER, *args], timeout_s)


def _run(argv: list[str], timeout_s: float) -> tuple[int, str]:
    try:
        code, output, errors = light_subprocess.run(argv, max(0.1, timeout_s))
    except light_subprocess.ProgramTimeoutError:
        return 124, f"tmux did not answer within {timeout_s:.0f} s"
    return code, (output + errors).strip()


def version() -> tuple[int, int]:
    """Return the version of the installed tmux.

    Returns
    -------
    tuple of (int, int)
        Major and minor version; (99, 0) for a development build without a number.

    Raises
    ------
    TmuxUnusableError
        tmux is not installed, or does not run.
    """
    try:
        code, text = _run(["tmux", "-V"], TIMEOUT_S)
    except FileNotFoundError:
        raise TmuxUnusableError("tmux is not installed") from None
    except OSError as error:
        raise TmuxUnusableError(f"tmux does not run: {error.strerror}") from None
    if code:
        raise TmuxUnusableError(f"tmux does not run: {text or f'tmux -V ended with {code}'}")
    for word in text.split():
        major, _, minor = (_digits(part) for part in word.rpartition("-")[2].partition("."))
        if major and minor:
            return int(major), int(minor)
    return 99, 0


def _digits(text: str) -> str:
    """Return the digits that a text begins with, six at most."""
    end = next((index for index, letter in enumerate(text) if letter not in "0123456789"), len(text))
    return text[: min(end, 6)]


def has_session(session: str) -> bool:
    """Check whether a session exists.

    Parameters
    ----------
    session : str
        Its exact name.

    Returns
    -------
    bool
        False also when no server runs.
    """
    return _is_listening(_socket()) and run("has-session", "-t", f"={session}")[0] == 0


def open_session(session: str, windows: list[tuple[str, list[str]]], timeout_s: float) -> str:
    """Open a detached session with one window per process.

    Parameters
    ----------
    session : str
        Name of the session.
    windows : list of (str, list of str)
        Name and argv of each window; an argv has at least two elements, so that tmux starts it without a shell.
    timeout_s : float
        Seconds, for all windows together.

    Returns
    -------
    str
        The error; empty on success.
    """
    deadline = time.monotonic() + timeout_s
    first, *others = _messages(session, windows)
    error = _open_first(first, timeout_s)
    for args in others:
        if error:
            return error
        code, output = run(*args, timeout_s=deadline - time.monotonic())
        error = output or f"tmux new-window ended with {code}" if code else ""
    return error


def _messages(session: str, windows: list[tuple[str, list[str]]]) -> list[list[str]]:
    """Return the commands that open a session with these windows, in as few messages as tmux accepts.

    Within one message, the session does not close when its first process ends before the next window opens.
    """
    messages: list[list[str]] = []
    for name, argv in windows:
        # `-x -y`: the size that programs see before a client attaches.
        opening = ["new-window", "-d", "-t", f"={session}:"] if messages else ["new-session", "-d", "-x", "200"]
        args = [*opening, *(["-n", name] if messages else ["-y", "50", "-s", session, "-n", name]), *argv]
        if messages and _size(messages[-1]) + _size(args) < _MAX_MESSAGE_BYTES:
            messages[-1] += [";", *args]
        else:
            messages.append(args)
    return messages


def _size(args: list[str]) -> int:
    return sum(len(os.fsencode(arg)) + 1 for arg in args)


def _open_first(args: list[str], timeout_s: float) -> str:
    for attempt in range(10):
        code, output = run(*args, timeout_s=timeout_s)
        if code == 0:
            return ""
        if not any(sign in output for sign in _SHUTDOWN_ERRORS):
            break
        time.sleep(0.05 * (attempt + 1))
    return output or f"tmux new-session ended with {code}"


def close_session(session: str) -> None:
    """Close a session if it exists; after the last session, remove the socket that tmux leaves behind.

    Parameters
    ----------
    session : str
        Its exact name.
    """
    if not _is_listening(_socket()):  # the last process has ended, and the server has ended with it
        _remove_stale_socket()
        return
    run("kill-session", "-t", f"={session}")
    for _ in range(10):
        if run("list-sessions")[0] == 0 or _remove_stale_socket():
            return
        time.sleep(0.02)  # the server is shutting down


def _socket() -> str:
    return os.path.join(os.environ.get("TMUX_TMPDIR") or "/tmp", f"tmux-{os.getuid()}", SOCKET_NAME)


def _remove_stale_socket() -> bool:
    """Remove the socket of a server that has ended, under tmux's own lock; return whether no socket is left.

    A client that starts a server locks the file beside the socket until the server listens (tmux's client.c).
    """
    import fcntl

    path = _socket()
    if not os.path.exists(path):
        return True
    lock = os.open(path + ".lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_listening = _is_listening(path)
        for name in [path + ".lock", *([] if is_listening else [path])]:
            os.unlink(name)
        return not is_listening
    except OSError:  # another client is starting a server now, or has removed the socket first
        return True
    finally:
        os.close(lock)


def _is_listening(path: str) -> bool:
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(path)
    except OSError as error:
        return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    finally:
        probe.close()
    return True

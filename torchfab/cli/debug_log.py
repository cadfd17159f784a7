"""The debug log of `fab --debug` and TORCHFAB_DEBUG=1: the lines of torchfab's loggers and of paramiko, on stderr.

    10:04:11.101 node1  transport: TCP: connecting to 10.77.1.2 port 22

Imported only if the log is enabled. No line contains secrets: requests are logged by their operation and size, never
by their content, and values that are known to be secret are replaced in every line.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

from invoke.util import LOG_FORMAT

from torchfab.core.environment import is_secret
from torchfab.core.log_context import current_host
from torchfab.core.log_lines import strip_controls

LOGGERS = ("torchfab", "paramiko")
_WIDEST_HOST = 24  # a longer name only shifts its own line
_SHORTEST_SECRET = 4  # shorter values also occur in ordinary text and numbers
_WEB_ADDRESS = re.compile(r"(https?://)(?:[^\s/?#]*@)?([^\s/?#'\"<>]*)[^\s'\"<>]*")
_LOGIN_IN_URL = re.compile(r"(://)[^\s/?#]*@")
_log = logging.getLogger(__name__)


def enable(tasks: Sequence[str], argv: Sequence[str], environ: Mapping[str, str]) -> None:
    """Print the debug log on stderr from now on.

    Parameters
    ----------
    tasks : sequence of str
        The names of the tasks that run.
    argv, environ : sequence of str, mapping of str to str
        The command line and the environment, which may hold secrets to leave out.
    """
    remove_invoke_handler()
    handler = _Handler()
    handler.setFormatter(_Formatter(redactor(secret_values(environ, argv))))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for old in [each for each in logger.handlers if isinstance(each, _Handler)]:
            logger.removeHandler(old)
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    versions = ", ".join(f"{name} {version(name)}" for name in ("fabric", "paramiko"))
    system = f"Python {platform.python_version()} on {platform.platform(terse=True)}"
    _log.debug("fab %s, pid %d: %s, %s", " ".join(tasks), os.getpid(), versions, system)


def remove_invoke_handler() -> None:
    """Disable Invoke's own debug log, which `fab --debug TASK` also enables.

    It lists every option of every task, and the values of all settings, passwords included. INVOKE_DEBUG=1 still shows
    it.
    """
    if os.environ.get("INVOKE_DEBUG"):
        return
    root = logging.getLogger()
    for handler in list(root.handlers):
        if handler.formatter is not None and handler.formatter._fmt == LOG_FORMAT:
            root.removeHandler(handler)
            root.setLevel(logging.WARNING)


class _Handler(logging.Handler):
    """Writes to stderr, and never fails: a closed terminal must not end a launch."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line of a record.

        Parameters
        ----------
        record : logging.LogRecord
            The record.
        """
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # ValueError: stderr is closed
            pass


class _Formatter(logging.Formatter):
    """One line per record: time, host, package, text."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        super().__init__()
        self.redact = redact
        self.width = 6  # of the longest host so far
        # Clears the rest of a progress display on this terminal line.
        self.erase = "\x1b[K" if sys.stderr.isatty() else ""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record.

        Parameters
        ----------
        record : logging.LogRecord
            `host` is an optional attribute; without it, the host is that of the thread.

        Returns
        -------
        str
            The line, without its end.
        """
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        host = getattr(record, "host", "") or current_host() or "-"
        self.width = min(_WIDEST_HOST, max(self.width, len(host)))
        package = record.name.removeprefix("torchfab.").partition(".")[0]
        text = " ".join(strip_controls(self.redact(line)) for line in record.getMessage().split("\n"))
        return f"{self.erase}{clock}.{int(record.msecs):03d} {host:{self.width}}  {package}: {text}"


# ---- secrets


def secret_values(environ: Mapping[str, str], argv: Sequence[str]) -> dict[str, str]:
    """Return the values that must not be shown: those of variables with the name of a secret.

    Parameters
    ----------
    environ : mapping of str to str
        The environment.
    argv : sequence of str
        The command line, which may have `--env NAME=VALUE`.

    Returns
    -------
    dict of str to str
        The variable's name by each line of its value; values of less than 4 characters are left out.
    """
    assignments = (arg.removeprefix("--env=").partition("=") for arg in argv)
    pairs = [*environ.items(), *((name, value) for name, _, value in assignments)]
    pieces = ((line.strip(), name) for name, value in pairs if is_secret(name) for line in value.split("\n"))
    return {piece: name for piece, name in pieces if len(piece) >= _SHORTEST_SECRET}


def redactor(values: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that leaves secrets out of a text.

    Parameters
    ----------
    values : mapping of str to str
        The name by secret value.

    Returns
    -------
    callable
        Takes and returns a text. A value becomes its name in angle brackets. A web address is cut to its scheme and
        host, because its path may be a token; other URLs lose their user and password.
    """
    longest_first = sorted(values, key=len, reverse=True)
    known = re.compile("|".join(map(re.escape, longest_first))) if values else None

    def redact(text: str) -> str:
        if known is not None:
            text = known.sub(lambda match: f"<{values[match[0]]}>", text)
        return _LOGIN_IN_URL.sub(r"\1", _WEB_ADDRESS.sub(r"\1\2", text))

    return redact

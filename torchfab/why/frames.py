"""Tell the frames of a script from those of the libraries that it calls. Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

STANDARD = re.compile(
    r"^<frozen |[/\\]lib(?:64)?[/\\]python3(?:\.\d+)?[/\\](?!site-packages|dist-packages)"
    r"|[/\\]Lib[/\\](?!site-packages)"
)
INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\](?P<package>\w+)")
# Not in a file, compiled into a library, or a program that an installation makes.
_NO_FILE = re.compile(r"^<|\.pyx$|\.pxi$|[/\\]bin[/\\][\w.-]+$")
# What Python's faulthandler prints when a signal ends a process: the innermost frame first.
_CRASHED_THREAD = re.compile(r"^(?:\S+ )?Current thread 0x\w+.* \(most recent call first\):\s*$")
_CRASH_FRAME = re.compile(r'^(?:\S+ )?  File "(?P<file>.+?)", line (?P<line>\d+) in (?P<function>.+?)\s*$')
_FRAME = re.compile(r'^\s*(?:> )?File "(?P<file>.+?)", line (?P<line>\d+)(?:, in (?P<function>.+?))?\s*$')


def is_of_script(path: str) -> bool:
    """Return whether a file of a traceback belongs to the script, not to an installed library or to Python.

    Parameters
    ----------
    path : str
        As the traceback names it.

    Returns
    -------
    bool
        True also for a library that is used from a folder of its own source code.
    """
    return not (STANDARD.search(path) or INSTALLED.search(path) or _NO_FILE.search(path))


def innermost_of_script(lines: Sequence[str]) -> str:
    """Return the innermost frame that belongs to the script.

    Parameters
    ----------
    lines : sequence of str
        The frames of one exception, in the layout of CPython.

    Returns
    -------
    str
        `FILE:LINE, in FUNCTION`; empty if there is none.
    """
    for line in reversed(lines):
        frame = _FRAME.match(line)
        if frame and is_of_script(frame["file"]):
            where = frame["file"] if frame["line"] == "0" else f"{frame['file']}:{frame['line']}"
            return f"{where}, in {frame['function']}" if frame["function"] else where
    return ""


def crashed_in(text: str) -> str:
    """Return where a process was when a signal ended it, as Python's faulthandler reports it.

    Parameters
    ----------
    text : str
        A log.

    Returns
    -------
    str
        The innermost frame of the script, otherwise of all: `FILE:LINE, in FUNCTION`; empty without a report.
    """
    lines = iter(text.splitlines())
    if not any(_CRASHED_THREAD.match(line) for line in lines):
        return ""
    frames = [match for match in map(_CRASH_FRAME.match, itertools.takewhile(_CRASH_FRAME.match, lines)) if match]
    chosen = next((frame for frame in frames if is_of_script(frame["file"])), frames[0] if frames else None)
    return f"{chosen['file']}:{chosen['line']}, in {chosen['function']}" if chosen else ""

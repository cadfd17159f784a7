"""Find Python tracebacks in a log, and compute a fingerprint that is equal for equal failures."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace

from torchfab.core.log_lines import strip_controls

_HEAD = "Traceback (most recent call last):"
# The prefix that torch adds to each traceback line of a rank in an initialised process group.
_RANK_PREFIX = re.compile(r"^\[(?:rank|default)\d+\]:\s?")
_FRAME = re.compile(r'^\s*File "(?P<file>.+)", line \d+(?:, in (?P<function>.+))?$')
# Lines that end a message without a blank line: C++ frames of torch, torchrun's own report, its warnings.
_NOT_MESSAGE = re.compile(r"^(?:Exception raised from |frame #\d+: |={5,}|-{5,}|[EWI]\d{4} |\[[EWI]\d{3,4} )")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?::|$)")
_SYNTAX = re.compile(r"^(?:SyntaxError|IndentationError|TabError): ")
_CHAINS = ("During handling of the above exception", "The above exception was the direct cause")
_MAX_MESSAGE_LINES = 12
_FINGERPRINT_FRAMES = 3


@dataclass(frozen=True)
class Traceback:
    """A Python traceback.

    Parameters
    ----------
    text : str
        Its lines as Python printed them.
    exception : str
        The exception and its message.
    frames : tuple of (str, str)
        File name (without its folder) and function of each frame, the innermost last.
    """

    text: str
    exception: str
    frames: tuple[tuple[str, str], ...] = ()

    @property
    def last_line(self) -> str:
        """The exception and the first line of its message."""
        return self.exception.partition("\n")[0]

    @property
    def fingerprint(self) -> str:
        """A hash that is equal for equal failures: it ignores numbers, addresses and folders."""
        plain = re.sub(r"0x[0-9a-fA-F]+|\d+", "N", self.last_line)
        return fingerprint_of(plain, *(f"{file}:{name}" for file, name in self.frames[-_FINGERPRINT_FRAMES:]))


def fingerprint_of(*parts: str) -> str:
    """Return a hash of some strings.

    Parameters
    ----------
    *parts : str
        In order.

    Returns
    -------
    str
        12 hexadecimal digits.
    """
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def last_traceback(text: str) -> Traceback | None:
    """Return the last complete traceback in a text.

    Parameters
    ----------
    text : str
        A log.

    Returns
    -------
    Traceback or None
        With the tracebacks that it is chained to; None if there is none.
    """
    lines = [_RANK_PREFIX.sub("", strip_controls(line)) for line in text.splitlines()]
    heads = [index for index, line in enumerate(lines) if line.endswith(_HEAD)]
    for head in reversed(heads):
        indent = len(lines[head]) - len(lines[head].lstrip(" |+"))
        found = _parse([line[indent:] if line[:indent].strip(" |+") == "" else line for line in lines[head:]])
        if found:
            return replace(found, text="\n".join([*_chained_before(lines[:head]), found.text]))
    return _syntax_error(lines)


def _chained_before(lines: list[str]) -> list[str]:
    """Return the lines of earlier tracebacks in a chain of exceptions; empty if it is not a chain."""
    sentence = next((line for line in reversed(lines[-3:]) if line.strip()), "")
    heads = [index for index, line in enumerate(lines) if line == _HEAD]
    if not sentence.startswith(_CHAINS) or not heads:
        return []
    return [*_chained_before(lines[: heads[-1]]), *lines[heads[-1] :]]


def _parse(lines: list[str]) -> Traceback | None:
    """Return the traceback that begins on the first line; None if it is cut off before its exception."""
    end = 1
    while end < len(lines) and (lines[end].startswith((" ", "\t")) or not lines[end].strip()):
        end += 1
    if end >= len(lines) or not _EXCEPTION.match(lines[end]):
        return None
    message = _message(lines[end:])
    return Traceback("\n".join([*lines[:end], *message]), "\n".join(message), _frames(lines[1:end]))


def _message(lines: list[str]) -> list[str]:
    found = lines[:1]
    for line in lines[1:_MAX_MESSAGE_LINES]:
        if not line.strip() or line.endswith(_HEAD) or _NOT_MESSAGE.match(line):
            break
        found.append(line)
    return found


def _frames(lines: list[str]) -> tuple[tuple[str, str], ...]:
    matches = (_FRAME.match(line) for line in lines)
    return tuple((os.path.basename(match["file"]), match["function"] or "") for match in matches if match)


def _syntax_error(lines: list[str]) -> Traceback | None:
    """Return the report of a syntax error in the script: it has no `Traceback` line."""
    for index in range(len(lines) - 1, -1, -1):
        if _SYNTAX.match(lines[index]):
            first = next((at for at in range(index, max(-1, index - 6), -1) if _FRAME.match(lines[at])), index)
            return Traceback("\n".join(lines[first : index + 1]), lines[index], _frames(lines[first:index]))
    return None

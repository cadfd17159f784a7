"""Python's tracebacks, found in the text of a log, and what tells whether two of them are the same failure."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace

from torchfab.core.log_lines import clean

_HEAD = "Traceback (most recent call last):"
# torch puts it before each line of the traceback of a rank that has joined the others.
_RANK = re.compile(r"^\[(?:rank|default)\d+\]:\s?")
_FRAME = re.compile(r'^\s*File "(?P<file>.+)", line \d+(?:, in (?P<function>.+))?$')
# Where a message ends though no blank line follows: C++ frames of torch, torchrun's own report, its warnings.
_NOT_MESSAGE = re.compile(r"^(?:Exception raised from |frame #\d+: |={5,}|-{5,}|[EWI]\d{4} |\[[EWI]\d{3,4} )")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?::|$)")
_SYNTAX = re.compile(r"^(?:SyntaxError|IndentationError|TabError): ")
_CHAINS = ("During handling of the above exception", "The above exception was the direct cause")
_LONGEST_MESSAGE = 12
_LAST_FRAMES = 3


@dataclass(frozen=True)
class Traceback:
    """A traceback.

    Parameters
    ----------
    text : str
        Its lines, as Python printed them.
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
        """Equal for two tracebacks that are the same failure: numbers and addresses do not count, nor folders."""
        plain = re.sub(r"0x[0-9a-fA-F]+|\d+", "N", self.last_line)
        return fingerprint_of(plain, *(f"{file}:{name}" for file, name in self.frames[-_LAST_FRAMES:]))


def fingerprint_of(*words: str) -> str:
    """Return 12 hexadecimal digits that are equal where the words are."""
    return hashlib.sha256("\n".join(words).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def last_traceback(text: str) -> Traceback | None:
    """Return the last traceback in a text that is whole; None when there is none."""
    lines = [_RANK.sub("", clean(line)) for line in text.splitlines()]
    heads = [index for index, line in enumerate(lines) if line.endswith(_HEAD)]
    for head in reversed(heads):
        indent = len(lines[head]) - len(lines[head].lstrip(" |+"))
        found = _read([line[indent:] if line[:indent].strip(" |+") == "" else line for line in lines[head:]])
        if found:
            return replace(found, text="\n".join([*_before(lines[:head]), found.text]))
    return _syntax_error(lines)


def _before(lines: list[str]) -> list[str]:
    """Return the lines of the tracebacks that a chain of exceptions has before its last one; none where it has none."""
    sentence = next((line for line in reversed(lines[-3:]) if line.strip()), "")
    heads = [index for index, line in enumerate(lines) if line == _HEAD]
    if not sentence.startswith(_CHAINS) or not heads:
        return []
    return [*_before(lines[: heads[-1]]), *lines[heads[-1] :]]


def _read(lines: list[str]) -> Traceback | None:
    """Return the traceback that begins with the first of some lines; None where its exception is not there."""
    end = 1
    while end < len(lines) and (lines[end].startswith((" ", "\t")) or not lines[end].strip()):
        end += 1
    if end >= len(lines) or not _EXCEPTION.match(lines[end]):
        return None
    message = _message(lines[end:])
    return Traceback("\n".join([*lines[:end], *message]), "\n".join(message), _frames(lines[1:end]))


def _message(lines: list[str]) -> list[str]:
    found = lines[:1]
    for line in lines[1:_LONGEST_MESSAGE]:
        if not line.strip() or line.endswith(_HEAD) or _NOT_MESSAGE.match(line):
            break
        found.append(line)
    return found


def _frames(lines: list[str]) -> tuple[tuple[str, str], ...]:
    matches = (_FRAME.match(line) for line in lines)
    return tuple((os.path.basename(match["file"]), match["function"] or "") for match in matches if match)


def _syntax_error(lines: list[str]) -> Traceback | None:
    """Return the report on a script that cannot be compiled: it has no head."""
    for index in range(len(lines) - 1, -1, -1):
        if _SYNTAX.match(lines[index]):
            first = next((at for at in range(index, max(-1, index - 6), -1) if _FRAME.match(lines[at])), index)
            return Traceback("\n".join(lines[first : index + 1]), lines[index], _frames(lines[first:index]))
    return None

"""Convert tracebacks of other printers (rich, loguru, structlog, JSON lines) to the layout of CPython."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torchfab.core.log_lines import strip_controls

HEAD = "Traceback (most recent call last)"
_REPEATED = re.compile(r"\s*\[repeated \d+x across (?:cluster|all workers)\].*$")  # Ray
_ESCAPED_HEAD = re.compile(re.escape(HEAD) + r":?\\n")
_MAX_JSON_CHARS = 200_000
_MAX_DEPTH = 6
# Keys under which container runtimes and loggers store a printed line, and keys that hold a whole traceback.
_MESSAGE_FIELDS = ("log", "message", "msg", "textPayload", "MESSAGE", "line", "text", "event", "body")
_STACK_FIELDS = ("exception", "exc_info", "exc_type", "stack_trace", "stacktrace", "stack", "traceback", "error")
_TIME_ONLY = re.compile(r"^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?Z?$")  # lines that some log viewers insert


class SourceLine(NamedTuple):
    """One line of text, and the number of its line in the log."""

    text: str
    number: int


def lines_of(text: str) -> list[SourceLine]:
    """Return the lines of a log without control sequences; tracebacks inside JSON or escaped text are unpacked.

    Parameters
    ----------
    text : str
        The log, or a part of it.

    Returns
    -------
    list of SourceLine
        Their numbers count the lines of `text` from 0.
    """
    found: list[SourceLine] = []
    for number, raw in enumerate(text.splitlines()):
        line = strip_controls(raw)
        if "[repeated " in line:
            line = _REPEATED.sub("", line)
        if _TIME_ONLY.match(line):
            continue
        inner = _unpack(line) if "{" in line or "\\n" in line else None
        if inner is None:
            found.append(SourceLine(shortened(line), number))
        else:
            found += [SourceLine(each, number) for each in ("", *inner, "")]
    return found


def shortened(line: str, max_chars: int = 4000) -> str:
    """Return the beginning and the end of a line: patterns take too long on lines of megabytes.

    Parameters
    ----------
    line : str
        The line.
    max_chars : int
        The longest line that is not shortened. Default 4000.

    Returns
    -------
    str
        A text of at most this length.
    """
    return line if len(line) <= max_chars else f"{line[: max_chars // 2]} {line[1 - max_chars // 2 :]}"


def message_of(line: str) -> str:
    """Return the printed line in a line of JSON, in which container runtimes and loggers wrap each line of a program.

    Parameters
    ----------
    line : str
        The line of a log.

    Returns
    -------
    str
        The line itself if it does not wrap a single line.
    """
    plain = line.strip()
    if not (plain.startswith("{") and plain.endswith("}") and len(plain) <= _MAX_JSON_CHARS):
        return line
    try:
        document = json.loads(plain)
    except (ValueError, RecursionError):
        return line
    if any(name in document for name in _STACK_FIELDS):
        return line
    texts = (document.get(name) for name in _MESSAGE_FIELDS)
    message = next((text.rstrip("\r\n") for text in texts if isinstance(text, str)), line)
    return line if "\n" in message else message


def _unpack(line: str) -> list[str] | None:
    """Return the lines of a traceback that is escaped in one log line; None if there is none."""
    if HEAD not in line and '"exc_type"' not in line:
        return None
    begin, end = line.find("{"), line.rfind("}")
    if 0 <= begin < end <= begin + _MAX_JSON_CHARS:
        try:
            document = json.loads(line[begin : end + 1])
        except (ValueError, RecursionError):
            pass
        else:
            texts = list(_texts(document, 0))
            return _split(texts) if texts else None
    if match := _ESCAPED_HEAD.search(line):
        plain = line[match.start() :].replace("\\\\n", "\\n").replace("\\n", "\n").replace('\\"', '"')
        return _split([plain.replace("\\'", "'").rstrip("\"'})] ")])
    return None


def _split(texts: list[str]) -> list[str]:
    return [strip_controls(line) for text in texts for line in (*text.splitlines(), "")]


def _texts(value: Any, depth: int) -> Iterator[str]:
    """Yield the tracebacks in a JSON document, in the layout of CPython."""
    if isinstance(value, str) and HEAD in value:
        yield value
    elif depth < _MAX_DEPTH and isinstance(value, dict):
        if "exc_type" in value:
            yield _from_structlog(value)
            return
        for each in value.values():
            yield from _texts(each, depth + 1)
    elif depth < _MAX_DEPTH and isinstance(value, list):
        for each in value:
            yield from _texts(each, depth + 1)


def _from_structlog(value: Mapping[str, Any]) -> str:
    frames = value.get("frames")
    lines = [f"{HEAD}:"]
    for frame in frames if isinstance(frames, list) else ():
        if isinstance(frame, dict):
            place = f'  File "{frame.get("filename", "?")}", line {frame.get("lineno", 0)}, in {frame.get("name", "?")}'
            lines += [place, *([f"    {frame['line']}"] if frame.get("line") else [])]
    return "\n".join([*lines, f"{value.get('exc_type')}: {value.get('exc_value', '')}"])


# ---- IPython

_IPYTHON_HEAD = re.compile(rf"^(?P<name>[A-Za-z_][\w.]*) {{4,}}{re.escape(HEAD)}\s*$")
_IPYTHON_FRAME = re.compile(r"^(?:File )?(?P<path>(?:/|~|<)\S*?)(?::\d+)?,? in (?P<function>[\w<>]+)\(.*$")


def ipython_head(line: str) -> str:
    """Return the exception class in the head of a traceback of IPython or Jupyter.

    Parameters
    ----------
    line : str
        The line.

    Returns
    -------
    str
        Empty if the line is not such a head.
    """
    match = _IPYTHON_HEAD.match(line.strip("\r"))
    return match["name"] if match else ""


def from_ipython(name: str, lines: list[str]) -> tuple[list[str], int]:
    """Convert a traceback of IPython to the layout of CPython.

    Parameters
    ----------
    name : str
        The exception class in its head.
    lines : list of str
        The lines from the head on.

    Returns
    -------
    list of str
        Head and frames; empty if the exception itself does not follow.
    int
        Number of lines before the exception.
    """
    converted = [f"{HEAD}:"]
    for count, line in enumerate(lines[1:_MAX_BOX_LINES], start=1):
        if re.match(rf"(?:\w+\.)*{re.escape(name)}(?::|$)", line):
            return converted, count
        if frame := _IPYTHON_FRAME.match(line):
            converted.append(f'  File "{frame["path"]}", line 0, in {frame["function"]}')
        elif line.startswith(("----> ", "--> ")):
            converted.append("    " + re.sub(r"^-+> \d*\s*", "", line))
    return [], 0


# ---- rich's boxes

_BOX_HEAD = re.compile(r"[╭┌+][─-]+ Traceback \(most recent call last\) [─-]+[╮┐+]?\s*$")
_BOX_END = re.compile(r"^[╰└+][─-]{10,}[╯┘+]?\s*$")
_BOX_LINE = re.compile(r"^[│|](.*?)[│|]?\s*$")
_BOX_FRAME = re.compile(
    r"^(?P<path>(?:/|[A-Za-z]:\\|<|\w+[/\\.])[^\s:]*(?: [^\s:]+)*):(?P<line>\d+) in (?P<function>\S+)$"
)
_BOX_SHORT = re.compile(r"^in (?P<function>[\w<>.]+):(?P<line>\d+)$")
_INNER_BOX = re.compile(r"^[╭╰│┌└]")
_MAX_BOX_LINES = 600


def box_head(line: str) -> int | None:
    """Return where the head of one of rich's tracebacks begins in a line.

    Parameters
    ----------
    line : str
        The line.

    Returns
    -------
    int or None
        None if the line is not such a head.
    """
    match = _BOX_HEAD.search(line)
    return match.start() if match else None


def unbox(lines: list[str]) -> tuple[list[str], int]:
    """Convert the traceback in one of rich's boxes to the layout of CPython.

    Parameters
    ----------
    lines : list of str
        The lines from the head on, without a prefix.

    Returns
    -------
    list of str
        Head and frames; the exception itself follows the box.
    int
        Number of lines of the box, with its borders; 0 if the box does not end.
    """
    converted, path = [f"{HEAD}:"], ""
    for count, line in enumerate(lines[1:_MAX_BOX_LINES], start=2):
        if _BOX_END.match(line):
            return converted, count
        match = _BOX_LINE.match(line)
        if not match:
            return (converted, count - 1) if len(converted) > 1 else ([], 0)
        content = match[1].strip()
        if _INNER_BOX.match(content):  # the local variables
            continue
        if frame := _BOX_FRAME.match(content):
            converted.append(f'  File "{frame["path"]}", line {frame["line"]}, in {frame["function"]}')
        elif (short := _BOX_SHORT.match(content)) and path:
            converted.append(f'  File "{path}", line {short["line"]}, in {short["function"]}')
        elif content.startswith(("❱", "> ")):
            converted.append("    " + re.sub(r"^(?:❱|>)\s*\d*\s*", "", content))
        path = content if content.startswith(("/", "<")) and " " not in content else path
    return [], 0

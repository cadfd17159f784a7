"""Find Python tracebacks in a log, and compute a fingerprint that is equal for equal failures.

A traceback is found after any prefix, in the layouts of CPython 3.9 to 3.14, rich, loguru, structlog, Ray and JSON
lines. Tracebacks that are chained, grouped or nested become one `Traceback` whose `members` begin with the cause.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import field, replace
from typing import NamedTuple

from torchfab.core.lazy_dataclass import dataclass
from torchfab.why.frames import innermost_of_script
from torchfab.why.line_prefixes import Prefix
from torchfab.why.traceback_layouts import HEAD, SourceLine, box_head, from_ipython, ipython_head, lines_of, unbox

_OF_RANK = r" \(RANK \d+\)"  # torch.distributed.checkpoint
_HEAD = re.compile(rf"(?:  \+ )?(?:Original |Exception Group )?{re.escape(HEAD)}:(?:{_OF_RANK})?\s*$")
_FRAME = re.compile(r'^\s*(?:> )?File "(?P<file>.+?)", line \d+(?:, in (?P<function>.+?))?\s*$')
_FRAME_BEGIN = re.compile(r'(?:  |> )File "[^"]+", line \d+')
# Lines that end a message without a blank line: C++ frames, torchrun's report, messages of loggers and of Python.
_NOT_MESSAGE = re.compile(
    r"^(?:Exception raised from |frame #\d+: |={5,}|-{5,}|\"\"\"|'''|[EWIF]\d{4} |\[[EWIF]\d{3,4} |\[rank\d+\]:"
    r"|\[?\d{4}[-/]\d\d[-/]\d\d[ T]|\d\d:\d\d:\d\d"
    r"|\[?(?:TRACE|DEBUG|INFO|WARN|WARNING|ERROR|CRITICAL|FATAL)\b[\]: ](?! ?\d{4}-\d\d-\d\d-\d\d:)"
    r"|\S+:\d+:\d+ \[\w+\] NCCL |terminate called|Exception in |Exception ignored |Process \S+:$|Error in atexit"
    r"|Fatal Python error|--- Logging error|Aborted|Killed$|Segmentation fault|Original exception was|srun: "
    r"|slurmstepd: |(?:Task|Future) exception was never)"
)
_EXCEPTION = re.compile(r"^(?P<name>[A-Za-z_][\w.]*(?:\.<locals>\.\w+)*)(?:\([\w., ]*\))?(?::|$)")
_LOOKS_RAISED = re.compile(r"(?:Error|Exception|Exit|Interrupt|Warning|Iteration|Group|Failure|Timeout|Killed|Died)$")
_SYNTAX = re.compile(r"^(?:SyntaxError|IndentationError|TabError): ")
_DIRECT = "The above exception was the direct cause of the following"
_HANDLING = "During handling of the above exception, another exception"
_CHAIN_WORDS = re.compile(rf"^(?:{_DIRECT}|{_HANDLING}|exception:|occurred:|exception occurred:|\"\"\"|''')")
# The line before a traceback that is printed inside the message of the previous exception.
_NESTED = re.compile(r"^-- Process \d+ terminated with the following error:")
_SEPARATOR = re.compile(r"^[ ]*\+-(?:\+-)?[-]*(?: \d+ |\.\.\.)?-*$")
_BAR = re.compile(r"^[ ]*[|+] ?")
_MAX_MESSAGE_LINES = 12
_MAX_BODY_LINES = 2000
_MAX_FOREIGN_LINES = 300
_MAX_STRANGERS = 10
_FINGERPRINT_FRAMES = 3
# Where Python begins the code of a thread, or of another process of the same rank.
_BEGINNINGS = {
    ("threading.py", "_bootstrap_inner"): "THREAD",
    ("threading.py", "_bootstrap"): "THREAD",
    ("process.py", "_bootstrap"): "CHILD",
    ("spawn.py", "spawn_main"): "CHILD",
    ("forkserver.py", "main"): "CHILD",
}


class Role(enum.Enum):
    """The meaning of a traceback for the process that printed it, from the line that Python printed before it."""

    MAIN = "main"  # no mark: it may have ended the process
    CHILD = "child"  # `Process SpawnProcess-1:`: it ended a child process
    THREAD = "thread"  # `Exception in thread ...`: it ended a thread
    WARNED = "warned"  # logged as a warning: the process continued
    IGNORED = "ignored"  # `Exception ignored in ...`, atexit, logging's own: never a cause


_MARKS = (
    (
        Role.IGNORED,
        re.compile(r"Exception ignored (?:in|on|while|at)\b|Error in (?:atexit|sys\.excepthook)|- Logging error -"),
    ),
    (Role.IGNORED, re.compile(r"Exception in threading\.excepthook|exception was never retrieved|^future: <")),
    (Role.THREAD, re.compile(r"(?:^|[\s:\]])Exception in (?:thread \S|callback )|Exception occurred in thread")),
    (Role.CHILD, re.compile(r"^Process \S.*:$")),
    (Role.WARNED, re.compile(r"(?:^|\W)(?:WARN|WARNING|DEBUG)(?:\W|$)")),
)


@dataclass(frozen=True)
class Member:
    """One exception of a traceback.

    Parameters
    ----------
    exception : str
        Its class and message, including notes that were added to it.
    calls : tuple of (str, str)
        File and function of each frame, the innermost last.
    place : str
        The innermost frame of the script: `FILE:LINE, in FUNCTION`; empty if there is none.
    """

    exception: str
    calls: tuple[tuple[str, str], ...] = ()
    place: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The class, as it is printed: `torch.OutOfMemoryError`."""
        match = _EXCEPTION.match(self.exception)
        return match["name"] if match else ""

    @property
    def first_line(self) -> str:
        """The exception and the first line of its message."""
        head, _, rest = self.exception.partition("\n")
        return (
            head
            if head.rstrip().rstrip(":") != self.name or not rest
            else f"{head.rstrip()} {rest.splitlines()[0].strip()}"
        )


@dataclass(frozen=True)
class Traceback:
    """A Python traceback.

    Parameters
    ----------
    text : str
        Its lines as Python printed them, without the prefix; of a nested one, the inner first.
    exception : str
        The exception that caused the others, and its message.
    calls : tuple of (str, str)
        File and function of each frame of that exception, the innermost last.
    members : tuple of Member
        All its exceptions, the cause first and the last one raised at the end.
    links : tuple of str
        How each member but the first follows from those before: `direct`, `handling`, `nested`, `group`.
    role : Role
        Its meaning for the process.
    line, raised, end : int
        The numbers of its first line, of the line with its last exception, and of the line after its last.
    prefix : Prefix
        The text before each of its lines.
    """

    text: str
    exception: str
    calls: tuple[tuple[str, str], ...] = ()
    members: tuple[Member, ...] = ()
    links: tuple[str, ...] = ()
    role: Role = field(default=Role.MAIN, compare=False)
    line: int = field(default=0, compare=False)
    raised: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)
    prefix: Prefix = field(default=Prefix(""), compare=False)

    @property
    def frames(self) -> tuple[tuple[str, str], ...]:
        """File name (without its folder) and function of each frame, the innermost last."""
        return tuple((os.path.basename(path), function) for path, function in self.calls)

    @property
    def place(self) -> str:
        """The innermost frame of the script: of the cause, or of the first exception that has one."""
        return next((each.place for each in self.members if each.place), "")

    @property
    def last_line(self) -> str:
        """The exception and the first line of its message."""
        return Member(self.exception).first_line

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
    """Return the last complete traceback in a text that Python does not mark as secondary.

    Parameters
    ----------
    text : str
        A log.

    Returns
    -------
    Traceback or None
        With the tracebacks that it is chained to; None if there is none.
    """
    found = all_tracebacks(text)
    return next((each for role in Role for each in reversed(found) if each.role is role), None)


@functools.lru_cache(maxsize=16)  # each log is queried several times
def all_tracebacks(text: str) -> tuple[Traceback, ...]:
    """Return all complete tracebacks in a text.

    Parameters
    ----------
    text : str
        A log.

    Returns
    -------
    tuple of Traceback
        In the order in which they begin; chains, groups and nested ones are one each.
    """
    lines = lines_of(text)
    found: list[Traceback] = []
    inside: set[int] = set()
    for at, line in enumerate(lines):
        head = _find_head(line.text) if at not in inside else None
        parsed = _parse_at(lines, at, head) if head else None
        if parsed is not None:
            found.append(parsed[0])
            inside |= parsed[1]
    return tuple(_joined(lines, found)) or _syntax_errors(lines)


# ---- one traceback


def _find_head(line: str) -> tuple[str, Prefix] | None:
    """Return the layout (`plain`, `group`, `box`, `ipython`) and the prefix of a traceback whose head is this line."""
    if HEAD not in line:
        return None
    start = box_head(line)
    if start is not None:
        return "box", Prefix(line[:start])
    match = _HEAD.search(line)
    if match is None:
        return ("ipython", Prefix("")) if ipython_head(line) else None
    start = match.start()
    if "Exception Group" in match[0]:
        start = start if match[0].startswith("  + ") else line.find("Exception Group")
        return "group", Prefix(line[:start])
    return "plain", Prefix(line[:start])


class OwnLine(NamedTuple):
    """A line of one process without its prefix, with its number in the log and its index in the parsed text."""

    text: str
    number: int
    at: int


def _own_lines(lines: Sequence[SourceLine], at: int, head: Prefix, prefix: Prefix) -> list[OwnLine]:
    """Return the lines from here on of the process whose traceback begins here, without their prefix."""
    found, foreign = [OwnLine(head.strip(lines[at].text) or "", lines[at].number, at)], 0
    for index in range(at + 1, min(len(lines), at + 1 + _MAX_BODY_LINES + _MAX_FOREIGN_LINES)):
        own = prefix.strip(lines[index].text)
        if own is not None:
            found.append(OwnLine(own, lines[index].number, index))
        elif prefix.is_blank or (foreign := foreign + 1) > _MAX_FOREIGN_LINES:  # an indented block has ended
            break
    return found


def _other_prefix(lines: Sequence[SourceLine], at: int, prefix: Prefix) -> Prefix:
    """Return the prefix of the lines below a head, if it differs from the text before the head.

    Either its numbers count lines or seconds, or it is a logger's, which is before the first line only, or the head was
    appended to a line that another process had not ended.
    """
    loose = prefix.with_any_numbers
    below = [line.text for line in lines[at + 1 : at + 4] if line.text.strip()]
    own = loose.strip(below[0]) if below else None
    if own is not None and _FRAME.match(own):
        return loose
    before = next((line[: match.start()] for line in below if (match := _FRAME_BEGIN.search(line))), "")
    return Prefix(before if Prefix(before).is_part_of(prefix.text) else "")


def _has_prefix_below(lines: Sequence[SourceLine], at: int, prefix: Prefix) -> bool:
    if not prefix.text:
        return True
    for line in itertools.islice(lines, at + 1, at + 1 + _MAX_FOREIGN_LINES):
        own = prefix.strip(line.text)
        if own is not None and own.strip():
            return True
        if own is None and _FRAME.match(line.text):
            return False
    return False


def _parse_at(lines: Sequence[SourceLine], at: int, head: tuple[str, Prefix]) -> tuple[Traceback, set[int]] | None:
    """Return the traceback whose head is at an index, and the indices of its lines; None if it is cut off."""
    layout, prefix = head
    body = prefix if _has_prefix_below(lines, at, prefix) else _other_prefix(lines, at, prefix)
    own = _own_lines(lines, at, prefix, body)
    role = _role_of(lines, at, prefix)
    if layout == "group":
        parsed = _parse_group([line.text for line in own])
    elif layout == "ipython":
        parsed = _parse_ipython([line.text for line in own])
    elif layout == "box":
        parsed = _parse_box([line.text for line in own])
    else:
        parsed = _parse([line.text for line in own])
    if parsed is None:
        return None
    found, count = parsed
    if role is Role.MAIN:
        role = _role_of_frames(found)
    end = own[min(count, len(own)) - 1].number + 1
    message = found.members[-1].exception.count("\n") + 1
    raised = own[max(0, min(count, len(own)) - message)].number
    where = {"role": role, "line": lines[at].number, "raised": raised, "end": end, "prefix": body}
    # Lines of other processes in between may contain their own heads.
    return replace(found, **where), {line.at for line in own[:count]}  # type: ignore[arg-type]


def _role_of(lines: Sequence[SourceLine], at: int, prefix: Prefix) -> Role:
    """Return the role of a traceback, from the line before it and the text before it on its own line."""
    for line in reversed(lines[max(0, at - 8) : at]):
        own = prefix.strip(line.text)
        text = line.text if own is None or prefix.is_blank else own
        if own is None and not prefix.is_blank and not _shares_process(line.text, prefix):
            continue
        if text.strip():
            if found := next((role for role, mark in _MARKS if mark.search(text.strip())), None):
                return found
            break
    return Role.WARNED if _MARKS[-1][1].search(prefix.text) else Role.MAIN


def _role_of_frames(found: Traceback) -> Role:
    """Return the role of a traceback without a mark, as when another process wrote between the two lines."""
    outer = ((os.path.basename(path), function) for path, function in found.members[-1].calls[:2])
    return next((Role[_BEGINNINGS[frame]] for frame in outer if frame in _BEGINNINGS), Role.MAIN)


def _shares_process(line: str, prefix: Prefix) -> bool:
    return line[:4] == prefix.text[:4]


def _parse(lines: list[str]) -> tuple[Traceback, int] | None:
    """Return the traceback that begins on the first line, and its number of lines; None if it is cut off."""
    end = _end_of_frames(lines, 1)
    if end is None:
        return None
    message, count = _message(lines[end:])
    calls = _calls(lines[1:end])
    members: list[Member] = [Member("\n".join(message), calls, innermost_of_script(lines[1:end]))]
    kept = [line for line in lines[:end] if line.startswith((" ", "\t", ">")) or not line.strip() or line is lines[0]]
    text = [*kept, *message]
    inner = _inner_frames(lines, end + count) if count == 1 else None
    if inner is not None:  # Ray prints the frames of the task inside the message
        nested, inner_count = inner
        members.insert(0, nested.members[0])
        text += nested.text.splitlines()
        count += inner_count
    first = members[0]
    links = ("nested",) * (len(members) - 1)
    return Traceback("\n".join(text), first.exception, first.calls, tuple(members), links), end + count


def _inner_frames(lines: list[str], at: int) -> tuple[Traceback, int] | None:
    if at >= len(lines) or not _FRAME.match(lines[at]):
        return None
    parsed = _parse(["", *lines[at:]])
    return (parsed[0], parsed[1] - 1) if parsed else None


def _end_of_frames(lines: list[str], begin: int) -> int | None:
    """Return the index of the line with the exception; None if the frames are cut off before it.

    Some lines of other threads (progress bars) may be between the frames.
    """
    at, strangers, seen = begin, 0, False
    while at < len(lines) and at < _MAX_BODY_LINES:
        line = lines[at]
        if line.startswith((" ", "\t", "> File")) or not line.strip():
            seen = seen or bool(_FRAME.match(line))
        elif _is_exception(line, lines, at):
            return at
        elif (strangers := strangers + 1) > (_MAX_STRANGERS if seen else 2) or HEAD in line:
            return None
        at += 1
    return None


def _is_exception(line: str, lines: list[str], at: int) -> bool:
    match = _EXCEPTION.match(line)
    if match is None:
        return False
    if _LOOKS_RAISED.search(match["name"]) or "." in match["name"]:
        return True
    # An unusual name (`Bad: x`) counts, unless frames follow: then another thread wrote it.
    return not any(_FRAME.match(each) for each in lines[at + 1 : at + 4])


def _message(lines: list[str]) -> tuple[list[str], int]:
    found = lines[:1]
    for line in lines[1:_MAX_MESSAGE_LINES]:
        if not line.strip() or HEAD in line or _NOT_MESSAGE.match(line) or _FRAME.match(line):
            break
        if line.startswith((_DIRECT, _HANDLING)):  # the blank line before it is lost
            break
        found.append(line)
    return found, len(found)


def _calls(lines: list[str]) -> tuple[tuple[str, str], ...]:
    matches = (_FRAME.match(line) for line in lines)
    return tuple((match["file"], match["function"] or "") for match in matches if match)


def _parse_box(lines: list[str]) -> tuple[Traceback, int] | None:
    converted, count = unbox(lines)
    if not count:
        return None
    rest = count + next((index for index, line in enumerate(lines[count : count + 3]) if line.strip()), 0)
    parsed = _parse([*converted, *lines[rest:]])
    return (parsed[0], rest + parsed[1] - len(converted)) if parsed else None


def _parse_ipython(lines: list[str]) -> tuple[Traceback, int] | None:
    converted, count = from_ipython(ipython_head(lines[0]), lines)
    parsed = _parse([*converted, *lines[count:]]) if converted else None
    return (parsed[0], count + parsed[1] - len(converted)) if parsed else None


def _parse_group(lines: list[str]) -> tuple[Traceback, int] | None:
    """Return the traceback of an exception group: first the exceptions in it, then the group itself."""
    block = list(itertools.takewhile(lambda line: re.match(r"^[ ]*[|+]", line), lines[1:_MAX_BODY_LINES]))
    segments: list[list[str]] = [[f"{HEAD}:"]]
    for line in block:
        if _SEPARATOR.match(line):
            segments.append([])
        else:
            segments[-1].append(_BAR.sub("", line))
    members: list[Member] = []
    for segment in segments[1:]:
        members += _members_of_segment(segment)
    outer = _parse(segments[0])
    if outer is None and not members:
        return None
    members += outer[0].members if outer else ()
    text = "\n".join([lines[0], *block])
    links = ("group",) * (len(members) - 1)
    return Traceback(text, members[0].exception, members[0].calls, tuple(members), links), len(block) + 1


def _members_of_segment(segment: list[str]) -> list[Member]:
    inner = all_tracebacks("\n".join(segment).replace("Exception Group Traceback", "Traceback"))
    found = [member for each in inner for member in each.members if not _is_group(member)]
    if found:
        return found
    raised = [line for line in segment if _EXCEPTION.match(line) and _LOOKS_RAISED.search(line.partition(":")[0])]
    return [Member(line) for line in raised if not _is_group(Member(line))]


def _is_group(member: Member) -> bool:
    return member.name.endswith("ExceptionGroup")


# ---- chains and nested tracebacks


def _joined(lines: Sequence[SourceLine], found: Sequence[Traceback]) -> list[Traceback]:
    """Join the tracebacks of a chain, and those that are printed inside the message of the previous one."""
    joined: list[Traceback] = []
    for each in found:
        before = next((one for one in reversed(joined) if one.prefix.shape == each.prefix.shape), None)
        link = _link(lines, before, each) if before else ""
        if before is not None and link:
            joined[joined.index(before)] = _join(before, each, link)
        else:
            joined.append(each)
    return joined


def _link(lines: Sequence[SourceLine], before: Traceback, after: Traceback) -> str:
    """Return the link of a traceback to the previous one; empty if they are not linked."""
    prefix = before.prefix
    between = []
    for line in lines:
        if before.end <= line.number < after.line:
            own = prefix.strip(line.text)
            if own is None and not prefix.is_blank:
                continue
            between.append((line.text if own is None else own).strip())
    words = [line for line in between if line]
    if not words:
        is_nested = _wraps_nested(before, lines, after)
        return "nested" if is_nested else ""
    if _NESTED.match(words[-1]) and len(words) <= 3:
        return "nested"
    if not all(_CHAIN_WORDS.match(line) for line in words):
        return ""
    text = " ".join(words)
    return "direct" if _DIRECT in text else "handling" if _HANDLING in text else ""


def _wraps_nested(before: Traceback, lines: Sequence[SourceLine], after: Traceback) -> bool:
    head = next((line.text for line in lines if line.number == after.line), "")
    last = before.text.splitlines()[-1].strip()
    is_inside = f"Original {HEAD}" in head or re.search(rf"{re.escape(HEAD)}:{_OF_RANK}", head)
    return bool(is_inside or _NESTED.match(last))


def _join(before: Traceback, after: Traceback, link: str) -> Traceback:
    if link == "nested":
        members, first = (*after.members, *before.members), after
        links = (*after.links, link, *before.links)
        text = f"{after.text}\n\n{before.text}"
    else:
        members, first = (*before.members, *after.members), before
        links = (*before.links, link, *after.links)
        words = _DIRECT + " exception:" if link == "direct" else _HANDLING + " occurred:"
        text = f"{before.text}\n\n{words}\n\n{after.text}"
    return replace(
        before,
        text=text,
        exception=first.exception,
        calls=first.calls,
        members=members,
        links=links,
        raised=after.raised,
        end=after.end,
    )


def _syntax_errors(lines: Sequence[SourceLine]) -> tuple[Traceback, ...]:
    """Return the report of a syntax error in the script: it has no `Traceback` line."""
    for index in range(len(lines) - 1, -1, -1):
        if _SYNTAX.match(lines[index].text):
            texts = [line.text for line in lines]
            first = next((at for at in range(index, max(-1, index - 6), -1) if _FRAME.match(texts[at])), index)
            calls = _calls(texts[first:index])
            text, where = "\n".join(texts[first : index + 1]), (lines[first].number, lines[index].number + 1)
            member = Member(texts[index], calls, innermost_of_script(texts[first:index]))
            return (Traceback(text, texts[index], calls, (member,), line=where[0], raised=where[1] - 1, end=where[1]),)
    return ()

"""Search whole log files for messages that explain a failure, with bounded memory, and return the text around them.

The end of a log is often only a consequence of the cause: frames of C++, other ranks, the launcher. So tracebacks are
searched for in the whole file, and other messages in its last megabytes. The matches, the last lines before dumps of
frames, and the end of the file are sent.
"""

from __future__ import annotations

import os
import re
import time

from torchfab.remote.job import log_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

# Literals, searched for from the end, because `bytes.rfind` searches 5 to 8 GB/s, `find` half of that, and a regular
# expression with alternatives 0.1 GB/s.
TRACEBACK_HEADS, JSON_HEADS = (b"Traceback (most recent call last)",), (b'"exc_type"',)
MARKS = (
    *(b"terminate called", b"what():", b"Fatal Python error", b"Watchdog caught", b"NCCL WARN", b"ncclSystemError"),
    *(b"HCCL", b"out of memory", b"Out Of Memory", b"oom_kill", b"Killed", b"killed", b"bad_alloc", b"Bus error"),
    *(b"Segmentation fault", b"CUDA error", b"Connection reset by peer", b"Connection closed by peer", b"Uncaught "),
    *(b"No space left on device", b"symbol lookup error", b"not found", b"SyntaxError: ", b"imed out", b"times out"),
    *(b"Errno ", b"EADDRINUSE", b"CANCELLED AT", b"Error: ", b"TimeoutError", b"fatal", b"FATAL", b"*** SIG"),
    *(b"unexpectedly", b"HW Exception by GPU", b"Memory access fault", b"No module named", b"Fatal error in"),
    *(b" failed", b"Failed to ", b"enforce fail", b"detected :", b"panicked at", b"exceeded", b"TERM_", b"SIGTERM"),
    *(b"KeyboardInterrupt", b": error: ", b"Assertion"),
)
# Characters in which the lines of a training differ from step to step; no mark contains one.
VARIABLE = b"0123456789.#"
# Lines of frames and memory that native code prints after its message, and NCCL's informational messages.
DUMPS = (
    r"^\s*(?:frame )?#\d+|\bframe #\d+: |^\s+at /|^\s{4,}@|\bNCCL INFO\b"
    r"|^\s*(?:\[[\w.-]+:\d+(?::\d+)*\] )?(?:\[ ?\d+\] \S|\*\*\* (?:Process received|End of error)|Signal(?: code)?: "
    r"|Failing at address)"
    r"|^={4,}|^[0-9a-f]{6,16}-[0-9a-f]{6,16} [r-][w-][x-]|^\S+\([^)]*\)\s?\[0x[0-9a-f]+\]|^ ?\d+ 0x[0-9a-f]+ "
    r"|^\*\*\* (?:SIG[A-Z]+ received by PID |.*stack trace:? \*\*\*)|^PC: @ "
    r"|^(?:Current thread|Thread) 0x|^  File \"|^Extension modules:"
)
_DUMP = re.compile(DUMPS.encode())
_CHUNK, _OVERLAP = 1024 * 1024, 256
# The kernel reads ahead only if a file is read forwards; reading backwards is three times slower.
_READ_AHEAD = 8 * 1024 * 1024
MARKED_BYTES = 128 * 1024 * 1024
_COUNTED_BYTES = 64 * 1024 * 1024
# Searched before the rest, so that a deadline leaves out the middle of a file.
_END_BYTES, _BEGIN_BYTES = 256 * 1024 * 1024, 64 * 1024 * 1024
_FIRST_HEADS, _LAST_HEADS, _LAST_MARKS = 4, 12, 2
# Bytes before and after a match.
_HEAD_WINDOW, _MARK_WINDOW = (1024, 8 * 1024), (512, 1536)
_MIN_TAIL_BYTES = 4 * 1024
_MAX_SEGMENTS = 24
# Lines outside of dumps: how many to find, in how many bytes of the end, and how many bytes of each to send.
_NEWS_LINES, _NEWS_BYTES, _MAX_LINE_BYTES = 25, 8 * 1024 * 1024, 1024


class Budget:
    """The limits of a search.

    Parameters
    ----------
    max_bytes : int
        Bytes to return.
    deadline : float
        When to stop searching, as `time.monotonic` counts.
    marked_bytes : int
        How many bytes at the end of a file to search for messages other than tracebacks. They have fifty beginnings,
        so this takes at least ten times as long per byte as the search for tracebacks. Default 128 MiB.
    """

    def __init__(self, max_bytes: int, deadline: float, marked_bytes: int = MARKED_BYTES) -> None:
        self.max_bytes, self.deadline, self.marked_bytes = max_bytes, deadline, marked_bytes

    @property
    def is_used_up(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() > self.deadline


def search(log: log_files.LogFile, written: log_files.WriteTimes, budget: Budget) -> dict[str, Any]:
    """Return the parts of a log file that explain how its process ended.

    Parameters
    ----------
    log : LogFile
        The file.
    written : WriteTimes
        When its lines were written.
    budget : Budget
        The limits.

    Returns
    -------
    dict
        `size`; `unsearched`: bytes that the deadline left out, after the first `unsearched_from`; `parts`: pieces of
        whole lines in the order of the file, each with `text`, `time` (when it was written), `line` (the number of
        its first line, 0 if it was not counted) and `gap` (whether text before it is left out).
    """
    size = log_files.size(log.full_path)
    try:
        with open(log.full_path, "rb", buffering=0) as file:
            if size <= budget.max_bytes:
                regions, left = [(0, size)], (0, 0)
            else:
                heads, left = _find_heads(file, size, budget)
                news, marks = _find_news(file, size, budget), _find_marks(file, size, budget)
                regions = _regions(heads, news, marks, size, budget.max_bytes)
            counts = _line_numbers(file, [start for start, _ in regions], size)
            parts = [
                part
                for (start, end), line in zip(regions, counts)
                for part in _parts(file, log, written, start, end, line)
            ]
    except OSError:  # removed meanwhile
        return {"size": 0, "unsearched": 0, "unsearched_from": 0, "parts": []}
    return {"size": size, "unsearched": left[1] - left[0], "unsearched_from": left[0], "parts": parts}


def _find_heads(file: Any, size: int, budget: Budget) -> tuple[list[int], tuple[int, int]]:
    """Return the offsets of tracebacks, the last ones and then the first ones, and the range that was not searched.

    The end is searched first, then the beginning, then the middle, backwards.
    """
    literals = _heads_of(file, size)
    last, high = _last_heads(file, size, max(0, size - _END_BYTES), literals, _LAST_HEADS, budget)
    first, low = _first_heads(file, min(high, _BEGIN_BYTES), literals, budget)
    if not budget.is_used_up:
        found, high = _last_heads(file, high, low, literals, _LAST_HEADS - len(last), budget)
        last += found
    missing = _FIRST_HEADS - len(first)
    if len(last) >= _LAST_HEADS and missing > 0:  # enough at the end: the first ones are elsewhere
        found, low = _first_heads(file, high, literals, budget, low)
        first = [*found, *first][-_FIRST_HEADS:]
    elif len(last) < _LAST_HEADS:  # the whole file was searched, or the time is used up
        joint = [*last, *first]
        last, first = joint[:_LAST_HEADS], joint[_LAST_HEADS:]
    is_cut = budget.is_used_up and low < high
    return [*last[:_LAST_HEADS], *first[-_FIRST_HEADS:]], (low, high) if is_cut else (0, 0)


def _last_heads(
    file: Any, end: int, begin: int, literals: tuple[bytes, ...], count: int, budget: Budget
) -> tuple[list[int], int]:
    """Return the last heads in a part of a file, the last one first, and the offset from which it was searched."""
    found: list[int] = []
    start = end
    for start, chunk in _chunks_backwards(file, end, begin):
        offsets = _last_offsets(chunk, min(_CHUNK, end - start), literals, count - len(found))
        found += [start + offset for offset in offsets]
        if len(found) >= count or budget.is_used_up:
            break
    return found, found[-1] if len(found) >= count and found else start


def _heads_of(file: Any, size: int) -> tuple[bytes, ...]:
    """Return the possible beginnings of a traceback in a file: fewer if no line is JSON, which halves the search."""
    for start in (0, max(0, size - _CHUNK)):
        file.seek(start)
        if b'{"' in file.read(_CHUNK):
            return (*TRACEBACK_HEADS, *JSON_HEADS)
    return TRACEBACK_HEADS


def _first_heads(
    file: Any, end: int, literals: tuple[bytes, ...], budget: Budget, start: int = 0
) -> tuple[list[int], int]:
    """Return the first heads of a part of a file, the first one last, and the offset up to which it was searched."""
    first: list[int] = []
    while start < end:
        file.seek(start)
        chunk = file.read(_CHUNK + _OVERLAP)
        found = _last_offsets(chunk, min(_CHUNK, end - start), literals, len(chunk))
        first += [start + offset for offset in reversed(found)]
        start += _CHUNK
        if len(first) >= _FIRST_HEADS:
            return first[:_FIRST_HEADS][::-1], first[_FIRST_HEADS - 1] + 1
        if budget.is_used_up:
            break
    return first[::-1], min(start, end)


def _chunks_backwards(file: Any, end: int, begin: int = 0) -> Iterator[tuple[int, bytes]]:
    size, ahead = end, end
    while end > begin:
        start = max(begin, end - _CHUNK)
        ahead = _read_ahead(file, ahead, max(begin, start - _READ_AHEAD))
        file.seek(start)
        yield start, file.read(end - start + (_OVERLAP if end < size else 0))
        end = start


def _read_ahead(file: Any, end: int, begin: int) -> int:
    """Let the kernel read the next chunks in advance, and return the offset from which it does."""
    if end - begin >= _CHUNK and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), begin, end - begin, os.POSIX_FADV_WILLNEED)
        return begin
    return end


def _last_offsets(chunk: bytes, end: int, literals: Iterable[bytes], count: int) -> list[int]:
    """Return the offsets of literals before an offset of a chunk, the last ones first, at most `count`."""
    found: list[int] = []
    for literal in literals if count else ():
        own: list[int] = []
        at = chunk.rfind(literal, 0, end + len(literal) - 1)
        while at >= 0 and len(own) < count:
            own.append(at)
            at = chunk.rfind(literal, 0, at + len(literal) - 1)
        found += own
    return sorted(found, reverse=True)[:count]


def _find_marks(file: Any, size: int, budget: Budget) -> list[int]:
    """Return the offsets of the last messages of each kind in the last megabytes."""
    found: dict[bytes, list[int]] = {}
    are_alike = True  # otherwise comparing lines would cost more than searching them all
    for start, chunk in _chunks_backwards(file, size):
        distinct = _distinct_lines(chunk) if are_alike else chunk
        are_alike = are_alike and len(distinct) < len(chunk) // 2
        for literal in MARKS:
            if literal not in distinct:
                continue
            own = found.setdefault(literal, [])
            offsets = _last_offsets(chunk, len(chunk), (literal,), _LAST_MARKS - len(own))
            own += [start + offset for offset in offsets]
        if size - start >= budget.marked_bytes or budget.is_used_up:
            break
    return sorted({offset for own in found.values() for offset in own}, reverse=True)


def _distinct_lines(chunk: bytes) -> bytes:
    """Return the lines of a chunk without digits, equal lines only once.

    Few distinct lines remain of a training log, so fifty literals cost less than one in the whole chunk.
    """
    return b"\n".join({*chunk.translate(None, VARIABLE).split(b"\n")})


def _find_news(file: Any, size: int, budget: Budget) -> list[tuple[int, int]]:
    """Return the offsets of the last lines that are not part of a dump of frames, the last one first.

    Most often these are the last lines of the file, which are sent anyway.
    """
    found: list[tuple[int, int]] = []
    cut = b""  # the beginning of the line that continues in the chunk after this one
    for start, chunk in _chunks_backwards(file, size):
        body = chunk[: min(_CHUNK, size - start)] + cut
        at = len(body)
        lines = body.split(b"\n")
        for line in reversed(lines[1:] if start else lines):
            at -= len(line)
            if line.strip() and not _DUMP.search(line[:_MAX_LINE_BYTES]):
                found.append((start + at, start + at + min(len(line), _MAX_LINE_BYTES) + 1))
            at -= 1
            if len(found) >= _NEWS_LINES:
                return found
        cut = lines[0][:_MAX_LINE_BYTES]
        if size - start >= _NEWS_BYTES or budget.is_used_up:
            break
    return found


def _regions(
    heads: list[int], news: list[tuple[int, int]], marks: list[int], size: int, max_bytes: int
) -> list[tuple[int, int]]:
    """Return the parts of a file to send: the end, the last and the first tracebacks, last lines, other messages."""
    tail = max(_MIN_TAIL_BYTES, max_bytes // 4) if heads or marks else max_bytes // 2
    chosen, left = [(size - tail, size)], max_bytes - tail
    last, first = heads[:_LAST_HEADS], heads[_LAST_HEADS:][::-1]
    windows = [_window(offset, _HEAD_WINDOW, size) for offset in [*last[:2], *first[:1]]]
    windows += [(max(0, start - 1), min(size, end)) for start, end in news]  # no partial lines are sent
    windows += [_window(offset, _HEAD_WINDOW, size) for offset in [*last[2:], *first[1:]]]
    windows += [_window(offset, _MARK_WINDOW, size) for offset in marks]
    for start, end in windows:
        new = _uncovered(start, end, chosen)
        if new > left:
            continue
        if new:
            chosen, left = _merged([*chosen, (start, end)]), left - new
    return _merged(chosen)


def _window(offset: int, around: tuple[int, int], size: int) -> tuple[int, int]:
    return max(0, offset - around[0]), min(size, offset + around[1])


def _uncovered(start: int, end: int, regions: list[tuple[int, int]]) -> int:
    return (end - start) - sum(max(0, min(end, stop) - max(start, begin)) for begin, stop in regions)


def _merged(regions: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(regions):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _line_numbers(file: Any, starts: list[int], size: int) -> list[int]:
    """Return the numbers of the lines that begin at or after some offsets; zeros for a file too large to count."""
    if size > _COUNTED_BYTES:
        return [0] * len(starts)
    numbers, number, at = [], 1, 0
    for start in starts:
        while at < start:
            file.seek(at)
            chunk = file.read(min(_CHUNK, start - at))
            if not chunk:
                break
            number, at = number + chunk.count(b"\n"), at + len(chunk)
        numbers.append(number)
    return numbers


def _parts(
    file: Any, log: log_files.LogFile, written: log_files.WriteTimes, start: int, end: int, line: int
) -> Iterator[dict[str, Any]]:
    """Yield a region as pieces of whole lines that were written at about the same time."""
    file.seek(start)
    content = file.read(end - start)
    if start:  # no partial lines are sent, because a part of a secret would not be recognized
        skipped = content.find(b"\n") + 1
        content, start, line = content[skipped:], start + skipped, line + 1 if line and skipped else line
        if not skipped:
            content = content.partition(b" ")[2]
    gap, at = start > 0, 0
    for cut in [*_cuts(written.sizes.get(log.path, []), start, start + len(content)), start + len(content)]:
        stop = len(content) if cut >= start + len(content) else content.rfind(b"\n", 0, cut - start) + 1
        piece = content[at:stop]
        if not piece:
            continue
        text = piece.decode(errors="replace")
        yield {"text": text, "time": written.time_of(log, start + stop), "line": line, "gap": gap}
        line, at, gap = line + piece.count(b"\n") if line else 0, stop, False


def _cuts(sizes: list[int], start: int, end: int) -> list[int]:
    inside = [size for size in sizes if start < size < end]
    step = len(inside) // _MAX_SEGMENTS + 1
    return inside[::-1][::step][::-1]

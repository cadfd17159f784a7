"""Omit what torchrun prints about itself after a rank has failed: its own traceback, and a report of 20 lines.

Its log line about one failed rank is left out, too: it names the first in its list, which another rank may have ended.

The rank's traceback is in the rank's log, and `fab why` prints it. torchrun prints its own output at its end, in this
order: a traceback that ends in ChildFailedError, and the report (torch/distributed/elastic/multiprocessing/errors, in
all versions from 1.9).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field
from operator import itemgetter

from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.log_lines import Line

NOTE = "torchrun's own traceback and report are omitted here; fab logs --all prints them"
_HEAD = "Traceback (most recent call last):"
_FAILED_CHILD = re.compile(r"[\w.]*\bChildFailedError\b")
# Its log line with one failed rank: the first that it polled, not the one that failed first.
_POLLED_RANK = re.compile(r"\[?E\d{4} .*\] failed \(exitcode: -?\d+\) local_rank: \d+ \(pid: \d+\) of binary: ")
_RULE = re.compile(r"-{20,}$")  # within the report; others print such lines, too
# Lines of the report; they identify a report whose first lines are missing (`--lines 10`).
_REPORT = re.compile(
    r"[=*]{20,}$|Failures:$|Other Failures:$|Root Cause( \(first observed failure\))?:$|\[\d+\]:$|.* FAILED *$"
    r"|  <NO_OTHER_FAILURES>$|  (time|host|rank|exitcode|error_file|traceback|msg) *: "
)
_LOG_LINE = re.compile(r"\[?[IWEF]\d{4} |\[?\d{4}-\d\d-\d\d[ T]")  # glog's, and Python's default with a time
_LONGEST = 200  # lines of a traceback that is held back until its last line has arrived


def _is_of_report(text: str) -> bool:
    return bool(_REPORT.match(text) or _POLLED_RANK.match(text))


@dataclass
class _Writer:
    """The state of one launcher's log."""

    held: list[Line] = field(default_factory=list)  # a traceback or rule, until it is known what follows
    is_reporting: bool = False
    is_noted: bool = False

    def read(self, line: Line) -> Sequence[Line]:
        """Return the lines that can be printed now."""
        if self.held:
            return self._continue(line)
        if line.text == _HEAD or (_RULE.match(line.text) and not self.is_noted):
            self.held = [line]
            return ()
        if self.is_reporting and not _LOG_LINE.match(line.text):
            return ()
        self.is_reporting = False
        return self._note(line) if _is_of_report(line.text) or _RULE.match(line.text) else (line,)

    def _continue(self, line: Line) -> Sequence[Line]:
        if _RULE.match(self.held[0].text):
            rule = self.release()
            return self._note(line) if _is_of_report(line.text) else (*rule, *self.read(line))
        if line.text.startswith(" ") and len(self.held) < _LONGEST:
            self.held.append(line)
            return ()
        if not _FAILED_CHILD.match(line.text):
            return (*self.release(), line)
        self.held, self.is_reporting = [], True
        return self._note(line)

    def _note(self, line: Line) -> Sequence[Line]:
        is_first, self.is_noted = not self.is_noted, True
        return (line._replace(text=NOTE),) if is_first else ()

    def release(self) -> Sequence[Line]:
        """Return an incomplete traceback that was held back."""
        held, self.held = self.held, []
        return held


class AgentReportFilter:
    """Replaces torchrun's own traceback and report in streams of log lines by one line."""

    def __init__(self) -> None:
        self._writers: dict[tuple[str, int | str], _Writer] = {}

    def read(self, lines: Sequence[Line]) -> Sequence[Line]:
        """Return the lines to print; a traceback of torchrun is held back until its last line.

        Parameters
        ----------
        lines : sequence of Line
            The next lines, in order for each writer. Lines of ranks pass unchanged.

        Returns
        -------
        sequence of Line
            The lines; one note in place of each report.
        """
        if set(map(type, map(itemgetter(1), lines))) <= {int}:  # the common case: all lines are of ranks
            return lines
        return list(self._read(lines))

    def _read(self, lines: Iterable[Line]) -> Iterator[Line]:
        for line in lines:
            if isinstance(line.label, int):
                yield line
            else:
                yield from self._writers.setdefault(line[:2], _Writer()).read(line)

    def release(self) -> list[Line]:
        """Return the held-back lines, at the end of the logs."""
        return [line for writer in self._writers.values() for line in writer.release()]

"""Prefixes of lines: generated as launchers, container runtimes and loggers print them, alone and nested."""

from __future__ import annotations

import datetime
from typing import NamedTuple

from hypothesis import strategies as st

from tests.support import fuzzed
from tests.why.test_tracebacks import LOGURU, PLAIN, RICH, last_traceback
from torchfab.why import tracebacks

GROUP = """\
  + Exception Group Traceback (most recent call last):
  |   File "/a/train.py", line 10, in <module>
  |     run()
  | ExceptionGroup: two (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "/a/train.py", line 7, in main
    |     raise ValueError("bad batch 17")
    | ValueError: bad batch 17
    +---------------- 2 ----------------
    | Traceback (most recent call last):
    |   File "/a/feed.py", line 3, in feed
    |     raise KeyError(4)
    | KeyError: 4
    +------------------------------------
"""
CHAIN = PLAIN + "\nDuring handling of the above exception, another exception occurred:\n\n" + PLAIN.replace(
    "ValueError: bad batch 17", "RuntimeError: clean-up failed"
)  # fmt: skip
# Text -> the exception that caused it.
TEXTS = {
    PLAIN: "ValueError: bad batch 17",
    CHAIN: "ValueError: bad batch 17",
    GROUP: "ValueError: bad batch 17",
    LOGURU: "ZeroDivisionError: division by zero",
    RICH: "ZeroDivisionError: division by zero",
}
MOMENTS = st.datetimes(datetime.datetime(2015, 1, 1), datetime.datetime(2035, 1, 1))
# How a time is written; the microseconds of all lines of a log have one number of digits.
TIME_FORMATS = (
    *("%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%d %H:%M:%S,%f", "%Y/%m/%d %H:%M:%S", "%H:%M:%S", "%m-%d %H:%M:%S"),
    *("[%Y-%m-%d %H:%M:%S,%f]", "%Y-%m-%dT%H:%M:%S.%f+02:00", "[%m/%d/%y %H:%M:%S]", "%Y-%m-%d|%H:%M:%S|"),
    *("%b %d %H:%M:%S", "%a %b %d %H:%M:%S %Y", "%d-%b-%y %H:%M:%S", "%d/%m/%Y %H:%M:%S"),
)
NAMES = st.from_regex(r"\A[a-z][a-z0-9-]{0,12}[a-z0-9]\Z")
NUMBERS = st.integers(0, 4096)
PIDS = st.integers(1, 4_194_304)


@st.composite
def addresses(draw: st.DrawFn) -> str:
    """Return an IPv4 address."""
    return ".".join(str(draw(st.integers(0, 255))) for _ in range(4))


# What is the same on each line of one process.
FIXED = st.one_of(
    st.builds("[rank{}]: ".format, NUMBERS),
    st.builds("[default{}]:".format, NUMBERS),
    st.builds("[default{0}]:[rank{0}]: ".format, NUMBERS),
    st.builds("{}: ".format, NUMBERS),  # srun --label
    st.builds("{:>3}: ".format, NUMBERS),
    st.builds("{}: ".format, NAMES),  # pdsh, clush
    st.builds("{}: ".format, addresses()),
    st.builds("[1,{}]<stderr>:".format, NUMBERS),  # mpirun --tag-output
    st.builds("[{}@1,{}]<stderr>: ".format, NAMES, NUMBERS),  # Open MPI 5
    st.builds("[{}] ".format, NUMBERS),  # mpiexec -l
    st.builds("({} pid={}) ".format, NAMES, PIDS),  # Ray
    st.builds("({} pid={}, ip={}) ".format, NAMES, PIDS, addresses()),
    st.builds("\x1b[36m({} pid={})\x1b[0m ".format, NAMES, PIDS),
    st.builds("(Worker_TP{} pid={}) ".format, NUMBERS, PIDS),  # vLLM
    st.builds("{}-{}  | ".format, NAMES, NUMBERS),  # docker compose
    st.builds("\x1b[33m{} |\x1b[0m ".format, NAMES),
    st.builds("[pod/{}/{}] ".format, NAMES, NAMES),  # kubectl logs --prefix
    st.builds("{} {}[{}]: ".format, NAMES, NAMES, PIDS),  # syslog
    st.sampled_from(("[stderr] ", "stderr F ", "ERR> ", "E | ", "    ", "\t")),
)


class Printer(NamedTuple):
    """What stands before each line: fixed parts, and a time that goes on from line to line."""

    before: tuple[str, ...]
    begin: datetime.datetime
    time_format: str
    step_s: float
    level: str
    after: tuple[str, ...]

    def prefix(self, line: int) -> str:
        """Return the prefix of a line."""
        moment = self.begin + datetime.timedelta(seconds=line * self.step_s)
        stamp = f"{moment.strftime(self.time_format)} " if self.time_format else ""
        return "".join((*self.before, stamp, self.level, *self.after))

    def print(self, text: str) -> list[str]:
        """Return the lines of a text as they are printed."""
        return [self.prefix(number) + line for number, line in enumerate(text.splitlines())]


PRINTERS = st.builds(
    Printer,
    st.lists(FIXED, max_size=1).map(tuple),
    MOMENTS,
    st.sampled_from(("", *TIME_FORMATS)),
    st.sampled_from((0.0, 0.001, 0.7, 61.0)),
    st.sampled_from(("", "ERROR ", "ERROR train.py:20] ", "CRITICAL - ")),
    st.lists(FIXED, max_size=1).map(tuple),
)


@fuzzed(st.sampled_from(sorted(TEXTS)), PRINTERS, st.booleans())
def test_every_layout_is_read_behind_generated_prefixes(text: str, printer: Printer, is_cut: bool) -> None:
    lines = printer.print(text)
    lines = [line.rstrip() for line in lines] if is_cut else lines  # terminals and editors cut blanks
    found = last_traceback("\n".join(["step 1", *lines, "the end"]))
    assert found.last_line == TEXTS[text]
    assert found.frames[-1][1] == "main"


@fuzzed(PRINTERS, PRINTERS, st.lists(st.booleans(), min_size=40, max_size=40))
def test_processes_with_different_prefixes_are_kept_apart(one: Printer, other: Printer, turns: list[bool]) -> None:
    names = ["".join((*each.before, *each.after)).strip() for each in (one, other)]
    if not all(names) or names[0] in names[1] or names[1] in names[0]:  # nothing tells them apart
        return
    queues = [one.print(PLAIN), other.print(PLAIN.replace("17", "18"))]
    lines = [queues[turn].pop(0) for turn in turns if queues[turn]]
    lines += [line for queue in queues for line in queue]
    found = [each.exception for each in tracebacks.all_tracebacks("\n".join(lines))]
    assert sorted(found) == ["ValueError: bad batch 17", "ValueError: bad batch 18"]


UNFINISHED = ("die: must run as root", "Loading shards: 3/4 ", "warning: no gpu", " 94%|###| 8/9 [1:02<0:03, 4.1s/it]")


@fuzzed(PRINTERS, st.sampled_from(UNFINISHED))
def test_head_that_is_appended_to_an_unfinished_line_is_found(printer: Printer, unfinished: str) -> None:
    first, *rest = printer.print(PLAIN)
    found = last_traceback("\n".join(["step 1", unfinished + first, *rest, "the end"]))
    assert found.last_line == "ValueError: bad batch 17"

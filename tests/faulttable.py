"""The tables of the fault matrix and of the ends: from test reports to text and to their page of the docs."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

HEAD = ("fault", "status and why say", "left running", "logs", "checkpoint")
BEGIN, END = "<!-- the table: written by `inv reliability` -->", "<!-- end of the table -->"
ENDS_HEAD = (
    *("end", "launcher", "a handler that saves", "2 loaders; a flag, read after each step"),
    *("leaves at a second SIGTERM", "no handler", "fab says"),
)
ENDS_BEGIN, ENDS_END = "<!-- the ends: written by `inv reliability` -->", "<!-- end of the ends -->"
STRESS_HEAD = ("command", "ended at random moments", "what the next command found")
STRESS_BEGIN, STRESS_END = "<!-- the stress: written by `inv stress` -->", "<!-- end of the stress -->"
PLAYS_BEGIN, PLAYS_END = "<!-- the plays: written by `inv plays` -->", "<!-- end of the plays -->"
# Patterns that differ in every run, and their replacements.
_CHANGES = (
    (re.compile(r"\b(?:10|127)(?:\.\d+){3}\b(?: port \d{5}\b)?"), "ADDRESS"),
    (re.compile(r"/\S*/here/"), ".../"),
    (re.compile(r"-[0-9a-f]{8}/"), "-ID/"),
    (re.compile(r"\[/\S+\] "), ""),
)


def rows_of(report: Any) -> list[list[str]]:
    """Return the rows in a pytest report."""
    return [value for name, value in getattr(report, "user_properties", ()) if name == "fault"]


def ends_of(report: Any) -> list[list[str]]:
    """Return the ends in a pytest report: end, launcher, a cell for each kind of rank, what fab says."""
    return [value for name, value in getattr(report, "user_properties", ()) if name == "end"]


def as_ends(found: Sequence[list[str]]) -> list[list[str]]:
    """Return the table of ends in the order of the ends and launchers; a row says why other launchers have none."""
    from tests.integration.test_ends import ALL_LAUNCHERS, ENDS

    rows: list[list[str]] = []
    for end in ENDS.values():
        mine = {row[1]: row for row in found if row[0] == end.what}
        rows += [mine.get(name, _unknown(end.what, name)) for name in ALL_LAUNCHERS if name in end.launchers]
        if end.others:
            rows.append([*_unknown(end.what, "the others")[:-1], f"– ({end.others})"])
    return rows


def _unknown(end: str, launcher: str) -> list[str]:
    return [end, launcher, *["–"] * (len(ENDS_HEAD) - 2)]


def plays_of(report: Any) -> list[list[str]]:
    """Return the plays in a pytest report: play, launcher, result."""
    return [value for name, value in getattr(report, "user_properties", ()) if name == "play"]


def in_order(rows: Sequence[list[str]]) -> list[list[str]]:
    """Return the rows in the order of the list of faults."""
    from tests.integration.faults import FAULTS

    return sorted(rows, key=lambda row: FAULTS.index(row[0]))


def missing(rows: Sequence[list[str]]) -> list[str]:
    """Return the faults without a row."""
    from tests.integration.faults import FAULTS

    return [fault for fault in FAULTS if fault not in {row[0] for row in rows}]


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Return the table for a terminal: each fault with one line per check."""
    lines = []
    for fault, *cells in rows:
        lines.append(fault)
        lines += [f"    {name:18}  {cell}" for name, cell in zip(HEAD[1:], cells, strict=True)]
    return "\n".join(lines)


def as_markdown(rows: Sequence[Sequence[str]], head: Sequence[str] = HEAD) -> str:
    """Return a table for the docs."""
    shown = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in shown)


def _cell(text: str) -> str:
    text = " ".join(text.split())
    for pattern, other in _CHANGES:
        text = pattern.sub(other, text)
    return text.replace("|", "\\|").replace("<", "&lt;")


def versions() -> str:
    """Return the versions that made the table."""
    tmux = subprocess.run(["tmux", "-V"], capture_output=True, text=True, check=True).stdout.strip()
    ssh = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr.partition(",")[0]
    names = ("torch", "fabric", "paramiko")
    ours = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}, {ours}, {ssh}, {tmux}"


def write_ends(page: Path, found: Sequence[list[str]]) -> None:
    """Replace the rows of the ends that were run in the table of a page; raise if a row is not known then."""
    before, _, rest = page.read_text(encoding="utf-8").partition(ENDS_BEGIN)
    old, _, after = rest.partition(ENDS_END)
    rows = as_ends([*_rows_in(old), *found])
    unknown = [row[:2] for row in rows if row[-1] == "–"]
    assert not unknown, f"the table is not whole: {unknown}"
    table = f"{ENDS_BEGIN}\n{_made()}\n\n{as_markdown(rows, ENDS_HEAD)}\n{ENDS_END}"
    page.write_text(before + table + after, encoding="utf-8")


def _rows_in(table: str) -> list[list[str]]:
    """Return the rows of a table of the docs, without its head."""
    return [_cells(line) for line in table.splitlines() if line.startswith("|")][2:]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def stress_of(report: Any) -> list[list[str]]:
    """Return what a stress test counted: command, how often it was ended, what was found."""
    return [value for name, value in getattr(report, "user_properties", ()) if name == "stress"]


def write_stress(page: Path, rows: Sequence[Sequence[str]]) -> None:
    """Replace the table of the stress tests in a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(STRESS_BEGIN)
    table = f"{STRESS_BEGIN}\n{_made()}\n\n{as_markdown(rows, STRESS_HEAD)}\n{STRESS_END}"
    page.write_text(before + table + rest.partition(STRESS_END)[2], encoding="utf-8")


def _made() -> str:
    date = time.strftime("%Y-%m-%d")
    return f"Made on {date}: {os.cpu_count()} cores, {platform.machine()}; {versions()}."


def as_plays(found: Sequence[Sequence[str]], before: Sequence[Sequence[str]] = ()) -> list[list[str]]:
    """Return the table of plays with its head: a row per play, a column per launcher; what was not run stays."""
    from tests.integration.plays import PLAYS
    from tests.integration.test_why_plays import ALL_LAUNCHERS

    known = {
        (row[0], launcher): cell for row in before[1:] for launcher, cell in zip(before[0][1:], row[1:], strict=True)
    }
    known.update({(play, launcher): result for play, launcher, result in found})
    rows = [[each.what, *(known.get((each.what, name), "–") for name in ALL_LAUNCHERS)] for each in PLAYS.values()]
    return [["what the first rank does", *ALL_LAUNCHERS], *rows]


def write_plays(page: Path, found: Sequence[Sequence[str]]) -> None:
    """Replace the cells of the plays that were run in the table of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(PLAYS_BEGIN)
    old, _, after = rest.partition(PLAYS_END)
    known = [_cells(line) for line in old.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    head, *rows = as_plays(found, known)
    table = f"{PLAYS_BEGIN}\n{as_markdown(rows, head)}\n{PLAYS_END}"
    page.write_text(before + table + after, encoding="utf-8")


def write(page: Path, rows: Sequence[list[str]]) -> None:
    """Replace the table in a page; raise if a fault has no row."""
    assert not missing(rows), f"the table is not whole: {missing(rows)}"
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    table = f"{BEGIN}\n{_made()}\n\n{as_markdown(rows)}\n{END}"
    page.write_text(before + table + rest.partition(END)[2], encoding="utf-8")

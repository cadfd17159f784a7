"""A report as a table in which equal nodes are one row, as findings with their fixes, and as JSON. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torchfab.core.inventory import fold
from torchfab.doctor import connectivity, consistency
from torchfab.doctor.finding import ERROR, WARNING, Finding
from torchfab.doctor.model import NodeReport, Report
from torchfab.doctor.node import size

_COLOURS = {ERROR: "31", WARNING: "33"}
ODD = " !"  # behind what most nodes do not have


def text(report: Report, colour: bool = False) -> str:
    """Return the report for people."""
    paragraphs = [table(report), *(paragraph(each, colour) for each in report.findings), verdict(report)]
    return "\n\n".join(paragraphs)


def paragraph(finding: Finding, colour: bool = False) -> str:
    """Return one finding for people, with its fix."""
    lines = [f"{_painted(finding.severity, colour)}: {fold(finding.hosts)}: {finding.what}"]
    if finding.expected or finding.found:
        wanted = f"expected {finding.expected}, " if finding.expected else ""
        lines.append(f"  {wanted}found {finding.found}")
    if finding.fix:
        lines.append(f"  fix: {finding.fix}")
    return "\n".join(lines)


def _painted(severity: str, colour: bool) -> str:
    code = _COLOURS.get(severity)
    return f"\x1b[{code}m{severity}\x1b[0m" if colour and code else severity


def verdict(report: Report) -> str:
    """Return the last line: whether something is wrong, and with how many nodes."""
    seconds, total = f"{report.seconds:.1f} s", len(report.nodes)
    counts = Counter(finding.severity for finding in report.findings)
    words = [_counted(counts[severity], severity) for severity in (ERROR, WARNING) if counts[severity]]
    if not words:
        return f"nothing is wrong with {_counted(total, 'node')} ({seconds})"
    odd = {host for finding in report.findings if finding.severity in (ERROR, WARNING) for host in finding.hosts}
    return f"{' and '.join(words)}, about {len(odd)} of {_counted(total, 'node')} ({seconds})"


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


# ---- the table


def table(report: Report) -> str:
    """Return the nodes in columns; those that are alike, and about which the same was found, are one row."""
    asked = [seen for seen in report.nodes if seen.probe]
    compared = (*_SAME, ("workdir is", _shared(report)))
    columns = [(head, cell) for head, cell in compared if any(cell(seen) for seen in asked)]
    usual = {head: _usual([cell(seen) for seen in asked]) for head, cell in columns}
    groups: dict[tuple[Any, ...], list[NodeReport]] = {}
    for seen in report.nodes:
        cells = tuple(_marked(cell(seen), usual[head], seen) for head, cell in columns)
        kinds = tuple(finding.kind for finding in report.findings if seen.host in finding.hosts)
        groups.setdefault((cells, kinds), []).append(seen)
    head = ["nodes", *(head for head, _ in columns), *(head for head, _ in _RANGES)]
    rows = [_row(cells, group) for (cells, _), group in groups.items()]
    return _aligned([head, *rows])


def _usual(cells: Sequence[str]) -> str:
    return Counter(cells).most_common(1)[0][0]


def _marked(cell: str, usual: str, seen: NodeReport) -> str:
    if not seen.probe:
        return "?"
    return (cell or "-") + (ODD if cell != usual else "")


def _row(cells: Sequence[str], group: Sequence[NodeReport]) -> list[str]:
    return [fold([seen.host for seen in group]), *cells, *(cell(group) for _, cell in _RANGES)]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _torch(seen: NodeReport) -> str:
    return consistency.torch(seen) or ""


def _cuda(seen: NodeReport) -> str:
    return consistency.cuda(seen) or ""


def _code(seen: NodeReport) -> str:
    return (consistency.code(seen) or "")[:8]


def _disk(seen: NodeReport) -> str:
    place = (seen.part("places") or {}).get("workdir") or {}
    return str(place.get("filesystem", ""))


def _shared(report: Report) -> Callable[[NodeReport], str]:
    """Return what tells whether a node sees the working directory of node 0; node 0 is as most others are."""
    words = {True: "shared", False: "own", None: ""}
    answers = [consistency.sees(seen, "workdir") for seen in report.nodes[1:]]
    usual = Counter(answer for answer in answers if answer is not None).most_common(1)
    of_first = usual[0][0] if usual else None
    return lambda seen: words[of_first if seen is report.nodes[0] else consistency.sees(seen, "workdir")]


def _way(seen: NodeReport) -> str:
    found = connectivity.interface(seen)
    return "" if found is None else str(found["name"])


# What is compared between nodes; a column that no node fills is left out.
_SAME: tuple[tuple[str, Callable[[NodeReport], str]], ...] = (
    ("python", lambda seen: consistency.python(seen) or ""),
    ("torch", _torch),
    ("cuda", _cuda),
    ("nccl", lambda seen: consistency.nccl(seen) or ""),
    ("driver", lambda seen: consistency.driver(seen) or ""),
    ("gpus", lambda seen: consistency.gpus(seen) or ""),
    ("tmux", lambda seen: consistency.tmux(seen) or ""),
    ("code", _code),
    ("to node 0", _way),
    ("ulimit -n", lambda seen: consistency.open_files(seen) or ""),
    ("workdir on", _disk),
)


def _ssh_range(group: Sequence[NodeReport]) -> str:
    known = [seen.connect_s for seen in group if seen.connect_s is not None]
    return f"{max(known):.2f} s" if known else "?"


def _clock_range(group: Sequence[NodeReport]) -> str:
    known = [seen.clock.ahead_s for seen in group if seen.clock is not None]
    return consistency.milliseconds(max(known, key=abs)) if known else "?"


def _least_free(group: Sequence[NodeReport], place: str) -> str:
    places = [each for seen in group if (each := (seen.part("places") or {}).get(place))]
    return size(min(each["free"] for each in places)) if places else "?"


# What is never quite equal: the worst of the row.
_RANGES: tuple[tuple[str, Callable[[Sequence[NodeReport]], str]], ...] = (
    ("ssh", _ssh_range),
    ("clock", _clock_range),
    ("disk free", lambda group: _least_free(group, "node_dir")),
    ("/dev/shm", lambda group: _least_free(group, "shm")),
)


# ---- JSON


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON."""
    return {
        "ok": not report.errors(),
        "seconds": round(report.seconds, 3),
        "findings": [finding.as_json() for finding in report.findings],
        "nodes": [_node_as_json(seen, report) for seen in report.nodes],
    }


def _node_as_json(seen: NodeReport, report: Report) -> dict[str, Any]:
    clock = seen.clock
    return {
        "host": seen.host,
        "node_rank": seen.node.rank,
        "ok": report.is_healthy(seen.host),
        "error": seen.error.message if seen.error else None,
        "connect_s": seen.connect_s,
        "clock_ahead_ms": clock.ahead_s * 1000 if clock else None,
        "clock_known_to_ms": clock.within_s * 1000 if clock else None,
        "told": dict(seen.probe),
        "way_to_node_0": dict(seen.connectivity),
    }

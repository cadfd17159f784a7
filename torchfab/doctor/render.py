"""Render a report: as a table with one row per group of equal nodes, as findings with their fixes, as JSON. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from torchfab.core.format import align_columns, format_bytes, format_offset
from torchfab.core.inventory import fold
from torchfab.doctor import connectivity, consistency
from torchfab.doctor.finding import ERROR, WARNING, Finding
from torchfab.doctor.model import NodeReport, Report

_COLOURS = {ERROR: "31", WARNING: "33"}
ODD = " !"  # marks a value that differs from the most frequent one


def render_report(report: Report, colour: bool = False) -> str:
    """Render a report as text.

    Parameters
    ----------
    report : Report
        The report.
    colour : bool
        Whether to colour severities with ANSI escapes. Default False.

    Returns
    -------
    str
        The table, the findings, and a last line with their counts.
    """
    paragraphs = [table(report), *(render_finding(each, colour) for each in report.findings), summary(report)]
    return "\n\n".join(paragraphs)


def render_finding(finding: Finding, colour: bool = False) -> str:
    """Render a finding with its fix as text.

    Parameters
    ----------
    finding : Finding
        The finding.
    colour : bool
        Whether to colour the severity with ANSI escapes. Default False.

    Returns
    -------
    str
        One to three lines.
    """
    lines = [f"{_coloured(finding.severity, colour)}: {fold(finding.hosts)}: {finding.what}"]
    if finding.expected or finding.found:
        expected = f"expected {finding.expected}, " if finding.expected else ""
        lines.append(f"  {expected}found {finding.found}")
    if finding.fix:
        lines.append(f"  fix: {finding.fix}")
    return "\n".join(lines)


def _coloured(severity: str, colour: bool) -> str:
    code = _COLOURS.get(severity)
    return f"\x1b[{code}m{severity}\x1b[0m" if colour and code else severity


def summary(report: Report) -> str:
    """Summarize a report: the numbers of errors, warnings and affected nodes.

    Parameters
    ----------
    report : Report
        The report.

    Returns
    -------
    str
        One line.
    """
    seconds, total = f"{report.seconds:.1f} s", len(report.nodes)
    counts = Counter(finding.severity for finding in report.findings)
    counted = [_counted(counts[severity], severity) for severity in (ERROR, WARNING) if counts[severity]]
    if not counted:
        return f"no problems found on {_counted(total, 'node')} ({seconds})"
    affected = {host for finding in report.findings if finding.severity in (ERROR, WARNING) for host in finding.hosts}
    return f"{' and '.join(counted)}, about {len(affected)} of {_counted(total, 'node')} ({seconds})"


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


# ---- the table


def table(report: Report) -> str:
    """Render the nodes as a table. Nodes with equal values and equal findings share a row.

    Parameters
    ----------
    report : Report
        The report.

    Returns
    -------
    str
        One line per row.
    """
    probed = [node for node in report.nodes if node.probe]
    compared = (*_COMPARED, ("workdir is", _workdir_column(report)))
    columns = [(head, cell) for head, cell in compared if any(cell(node) for node in probed)]
    usual = {head: _usual([cell(node) for node in probed]) for head, cell in columns}
    groups: dict[tuple[Any, ...], list[NodeReport]] = {}
    for node in report.nodes:
        cells = tuple(_marked(cell(node), usual[head], node) for head, cell in columns)
        kinds = tuple(finding.kind for finding in report.findings if node.host in finding.hosts)
        groups.setdefault((cells, kinds), []).append(node)
    head = ["nodes", *(head for head, _ in columns), *(head for head, _ in _RANGES)]
    rows = [_row(cells, group) for (cells, _), group in groups.items()]
    return align_columns([head, *rows])


def _usual(cells: Sequence[str]) -> str:
    return Counter(cells).most_common(1)[0][0]


def _marked(cell: str, usual: str, node: NodeReport) -> str:
    if not node.probe:
        return "?"
    return (cell or "-") + (ODD if cell != usual else "")


def _row(cells: Sequence[str], group: Sequence[NodeReport]) -> list[str]:
    return [fold([node.host for node in group]), *cells, *(cell(group) for _, cell in _RANGES)]


def _torch(node: NodeReport) -> str:
    return consistency.torch(node) or ""


def _cuda(node: NodeReport) -> str:
    return consistency.cuda(node) or ""


def _code(node: NodeReport) -> str:
    return (consistency.code_digest(node) or "")[:8]


def _disk(node: NodeReport) -> str:
    place = (node.parts.places or {}).get("workdir")
    return place.filesystem if place else ""


def _workdir_column(report: Report) -> Callable[[NodeReport], str]:
    """Return a function that shows whether a node shares the workdir of node 0; node 0 shows the majority's value."""
    texts = {True: "shared", False: "own", None: ""}
    answers = [consistency.sees_file_of_node_0(node, "workdir") for node in report.nodes[1:]]
    usual = Counter(answer for answer in answers if answer is not None).most_common(1)
    of_first = usual[0][0] if usual else None
    return lambda node: texts[of_first if node is report.nodes[0] else consistency.sees_file_of_node_0(node, "workdir")]


def _interface(node: NodeReport) -> str:
    found = connectivity.interface_to_node_0(node)
    return "" if found is None else str(found.name)


# The columns whose values are compared between nodes. A column that is empty for all nodes is omitted.
_COMPARED: tuple[tuple[str, Callable[[NodeReport], str]], ...] = (
    ("python", lambda node: consistency.python(node) or ""),
    ("torch", _torch),
    ("cuda", _cuda),
    ("nccl", lambda node: consistency.nccl(node) or ""),
    ("driver", lambda node: consistency.driver(node) or ""),
    ("gpus", lambda node: consistency.gpus(node) or ""),
    ("tmux", lambda node: consistency.tmux(node) or ""),
    ("code", _code),
    ("to node 0", _interface),
    ("ulimit -n", lambda node: consistency.open_files(node) or ""),
    ("workdir on", _disk),
)


def _ssh_range(group: Sequence[NodeReport]) -> str:
    known = [node.connect_s for node in group if node.connect_s is not None]
    return f"{max(known):.2f} s" if known else "?"


def _clock_range(group: Sequence[NodeReport]) -> str:
    known = [node.clock.ahead_s for node in group if node.clock is not None]
    return format_offset(max(known, key=abs)) if known else "?"


def _least_free(group: Sequence[NodeReport], place: str) -> str:
    places = [each for node in group if (each := (node.parts.places or {}).get(place))]
    return format_bytes(min(each.free for each in places)) if places else "?"


# The columns whose values always differ a little: they show the worst value of the row.
_RANGES: tuple[tuple[str, Callable[[Sequence[NodeReport]], str]], ...] = (
    ("ssh", _ssh_range),
    ("clock", _clock_range),
    ("disk free", lambda group: _least_free(group, "node_dir")),
    ("/dev/shm", lambda group: _least_free(group, "shm")),
)


# ---- JSON


def as_json(report: Report) -> dict[str, Any]:
    """Convert a report to a JSON object.

    Parameters
    ----------
    report : Report
        The report.

    Returns
    -------
    dict
        `ok`, `duration_s`, `findings`, `nodes`.
    """
    return {
        "ok": not report.errors(),
        "duration_s": round(report.seconds, 3),
        "findings": [finding.as_json() for finding in report.findings],
        "nodes": [_node_as_json(node, report) for node in report.nodes],
    }


def _node_as_json(node: NodeReport, report: Report) -> dict[str, Any]:
    clock = node.clock
    return {
        "host": node.host,
        "node_rank": node.node.rank,
        "ok": report.is_healthy(node.host),
        "error": node.error.message if node.error else None,
        "connect_s": node.connect_s,
        "clock_ahead_s": clock.ahead_s if clock else None,
        "clock_within_s": clock.within_s if clock else None,
        "facts": _known(msgspec.to_builtins(node.parts)),
        "to_node_0": _known(msgspec.to_builtins(node.connectivity)) if node.connectivity else None,
    }


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

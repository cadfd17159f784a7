"""Render a diagnosis as human-readable text, and as JSON."""

from __future__ import annotations

import time
from typing import Any

from torchfab.collectives.report import verdict_as_json
from torchfab.core.errors import failed_as_json
from torchfab.core.format import duration
from torchfab.core.log_lines import strip_controls
from torchfab.why.causes import Kind
from torchfab.why.diagnosis import Diagnosis
from torchfab.why.failures import Failure
from torchfab.why.log_reading import EvidenceLine
from torchfab.why.tracebacks import Traceback

_MAX_TRACEBACK_LINES = 40
_MAX_LIST_LINES = 12
_CERTAINTIES = {
    "certain": "certain",
    "probable": "probable: no better explanation is known",
    "possible": "possible: the evidence does not prove it",
}
_MIN_TIMELINE = 3  # events: fewer are already in the rest of the text


def render(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as human-readable text.

    Parameters
    ----------
    diagnosis : Diagnosis
        Of a job.

    Returns
    -------
    str
        Several lines, without terminal control sequences.
    """
    parts = [_answer(diagnosis)]
    if diagnosis.cause.fix:
        parts.append(_row("fix", diagnosis.cause.fix))
    parts += [_row("calls", each.words) for each in diagnosis.collectives]
    if diagnosis.place:
        parts.append(_row("at", diagnosis.place))
    if diagnosis.first:
        parts.append(_row("first", _describe_first(diagnosis, diagnosis.first)))
    if diagnosis.certainty:
        parts.append(_row("sure", _CERTAINTIES[diagnosis.certainty]))
    parts += [_row("or", f"{each.label}: {each.cause.words}") for each in diagnosis.rivals]
    if diagnosis.cause.kind not in (Kind.SUCCEEDED, Kind.RUNNING):
        parts.append(_row("kind", diagnosis.cause.kind.value))
    parts += [_row("behind", each.words) for each in diagnosis.stragglers]
    parts += [_row("also", note) for note in diagnosis.notes]
    parts += _log_excerpt(diagnosis)
    parts += _listed("then", diagnosis.consequences)
    parts += _listed("the other ranks", diagnosis.others)
    parts += _listed("timeline (this machine's clock)", _timeline(diagnosis))
    parts += _listed("evidence", [_describe_evidence(each) for each in diagnosis.evidence])
    parts += _listed("unreachable", [f"{host}: {reason}" for host, reason in diagnosis.unreachable.items()])
    return "\n".join(strip_controls(line) for part in parts for line in part.split("\n"))


def _answer(diagnosis: Diagnosis) -> str:
    """Return the first line: the job, its state, and why it is so."""
    words = diagnosis.cause.words
    state = "" if words.startswith(("it is ", "it has succeeded")) else f" {diagnosis.state}"
    return f"job {diagnosis.job}{state}: {words}"


def _describe_evidence(line: EvidenceLine) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(line.time)) + " " if line.time else ""
    where = f"{line.path}:{line.line}" if line.line else line.path
    return f"{when}{line.host} {where}: {line.text}"


def _row(name: str, words: str) -> str:
    return f"{name:<6} {words}"


def _describe_first(diagnosis: Diagnosis, first: Failure) -> str:
    after = f"{duration(first.time - diagnosis.created)} after the launch"
    when = time.strftime("%H:%M:%S", time.localtime(first.time))
    return f"{first.label}, {when}, {after}"


def _log_excerpt(diagnosis: Diagnosis) -> list[str]:
    """Return the traceback of the first failure; without one, its last log lines."""
    if diagnosis.first is None:
        return []
    if diagnosis.traceback and diagnosis.first.rank is None:  # torchrun's own frames are not useful
        return ["", f"its last line ({diagnosis.first.path}):", f"  {diagnosis.traceback.last_line}"]
    if diagnosis.traceback:
        lines = _shortened(diagnosis.traceback)
        return ["", f"its traceback ({diagnosis.first.path}):", *(f"  {line}" for line in lines)]
    if diagnosis.first.lines:
        return ["", f"its last lines ({diagnosis.first.path}):", *(f"  {line}" for line in diagnosis.first.lines)]
    path = diagnosis.first.path
    return ["", f"its log is empty ({path})" if path else "there is no log"]


def _shortened(traceback: Traceback) -> list[str]:
    """Return the lines of a traceback; of a long one, the beginning, the end, and the root exception."""
    lines = traceback.text.splitlines()
    if len(lines) <= _MAX_TRACEBACK_LINES:
        return lines
    cause = next((at for at, line in enumerate(lines) if line.startswith(traceback.last_line[:40])), len(lines) - 1)
    begin, end = 5, len(lines) - _MAX_TRACEBACK_LINES // 2
    kept = sorted({*range(begin), *range(max(0, cause - 12), min(len(lines), cause + 2)), *range(end, len(lines))})
    shown: list[str] = []
    for before, at in zip([-1, *kept], kept, strict=False):
        shown += [f"  ... {at - before - 1} lines ..."] if at - before > 1 else []
        shown.append(lines[at])
    return shown


def _listed(head: str, lines: Any) -> list[str]:
    kept = list(lines)
    if not kept:
        return []
    more = [f"  and {len(kept) - _MAX_LIST_LINES} more (--json has all)"] if len(kept) > _MAX_LIST_LINES else []
    return ["", f"{head}:", *(f"  {line}" for line in kept[:_MAX_LIST_LINES]), *more]


def _timeline(diagnosis: Diagnosis) -> list[str]:
    if len(diagnosis.timeline) < _MIN_TIMELINE:
        return []
    lines = []
    for event in diagnosis.timeline:
        stamp = time.strftime("%H:%M:%S", time.localtime(event.time)) + f".{int(event.time % 1 * 10)}"
        lines.append(f"{stamp}  {event.where + ': ' if event.where else ''}{event.what[:160]}")
    return lines


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return a diagnosis as JSON values.

    Parameters
    ----------
    diagnosis : Diagnosis
        Of a job.

    Returns
    -------
    dict
        As `fab why --json` prints it.
    """
    return {
        "job": diagnosis.job,
        "state": diagnosis.state,
        "cause": {
            "kind": diagnosis.cause.kind.name.lower(),
            "name": diagnosis.cause.name,
            "words": diagnosis.cause.words,
            "fix": diagnosis.cause.fix,
        },
        "first": _failure_as_json(diagnosis.first),
        "fingerprint": diagnosis.fingerprint,
        "certainty": diagnosis.certainty or None,
        "evidence": [vars(line) for line in diagnosis.evidence],
        "rivals": [_failure_as_json(each) for each in diagnosis.rivals],
        "bad_nodes": list(diagnosis.bad_nodes),
        "collectives": [verdict_as_json(each) for each in diagnosis.collectives],
        "stragglers": [{"hosts": list(each.hosts), "words": each.words} for each in diagnosis.stragglers],
        "notes": list(diagnosis.notes),
        "consequences": list(diagnosis.consequences),
        "other_ranks": list(diagnosis.others),
        "timeline": [vars(event) for event in diagnosis.timeline],
        "failed": failed_as_json(diagnosis.unreachable),
    }


def _failure_as_json(first: Failure | None) -> dict[str, Any] | None:
    if first is None:
        return None
    return {
        "time": first.time,
        "host": first.host,
        "node_rank": first.node_rank,
        "rank": first.rank,
        "code": first.code,
        "cause": {"kind": first.cause.kind.name.lower(), "name": first.cause.name, "words": first.cause.words},
        "running": first.is_running,
        "exception": first.traceback.exception if first.traceback else None,
        "at": first.place or None,
        "traceback": first.traceback.text if first.traceback else None,
        "log": first.path,
        "last_lines": list(first.lines),
    }

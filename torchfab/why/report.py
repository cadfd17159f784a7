"""A story as one page for people, and as JSON."""

from __future__ import annotations

import time
from typing import Any

from torchfab.core.log_lines import clean
from torchfab.core.status import duration
from torchfab.why.causes import Kind
from torchfab.why.diagnosis import Diagnosis
from torchfab.why.failures import Failure

_LONGEST_TRACEBACK = 40
_MOST_LINES = 12
_SHORTEST_STORY = 3  # moments: fewer say nothing that the rest of the page does not


def text(story: Diagnosis) -> str:
    """Return the page."""
    parts = [f"job {story.job}: {story.state}", "", _row("why", story.cause.words)]
    if story.cause.kind not in (Kind.SUCCEEDED, Kind.RUNNING):
        parts.append(_row("kind", story.cause.kind.value))
    if story.first:
        parts.append(_row("first", _first_words(story, story.first)))
    if story.cause.fix:
        parts.append(_row("fix", story.cause.fix))
    parts += [_row("behind", each.words) for each in story.stragglers]
    parts += [_row("also", note) for note in story.notes]
    parts += _own_words(story)
    parts += _listed("then", story.consequences)
    parts += _listed("in order (this machine's clock)", _moments(story))
    parts += _listed("could not be asked", [f"{host}: {reason}" for host, reason in story.silent.items()])
    return "\n".join(clean(line) for part in parts for line in part.split("\n"))


def _row(name: str, words: str) -> str:
    return f"{name:<6} {words}"


def _first_words(story: Diagnosis, first: Failure) -> str:
    after = f"{duration(first.time - story.created)} after the launch"
    when = time.strftime("%H:%M:%S", time.localtime(first.time))
    return f"{first.who}, {when}, {after}"


def _own_words(story: Diagnosis) -> list[str]:
    """Return the traceback of what failed first; its last log lines where there is none."""
    if story.first is None:
        return []
    if story.traceback and story.first.rank is None:  # torchrun's own frames say nothing
        return ["", f"its last words ({story.first.path}):", f"  {story.traceback.last_line}"]
    if story.traceback:
        lines = story.traceback.text.splitlines()
        if len(lines) > _LONGEST_TRACEBACK:
            left_out = len(lines) - _LONGEST_TRACEBACK
            lines = [*lines[:5], f"  ... {left_out} lines ...", *lines[-_LONGEST_TRACEBACK + 5 :]]
        return ["", f"its traceback ({story.first.path}):", *(f"  {line}" for line in lines)]
    if story.first.lines:
        return ["", f"its last lines ({story.first.path}):", *(f"  {line}" for line in story.first.lines)]
    return ["", "it left no log"]


def _listed(head: str, lines: Any) -> list[str]:
    kept = list(lines)
    if not kept:
        return []
    more = [f"  and {len(kept) - _MOST_LINES} more (--json has all)"] if len(kept) > _MOST_LINES else []
    return ["", f"{head}:", *(f"  {line}" for line in kept[:_MOST_LINES]), *more]


def _moments(story: Diagnosis) -> list[str]:
    if len(story.timeline) < _SHORTEST_STORY:
        return []
    lines = []
    for moment in story.timeline:
        stamp = time.strftime("%H:%M:%S", time.localtime(moment.time)) + f".{int(moment.time % 1 * 10)}"
        lines.append(f"{stamp}  {moment.where + ': ' if moment.where else ''}{moment.what[:160]}")
    return lines


def as_json(story: Diagnosis) -> dict[str, Any]:
    """Return the story for machines."""
    return {
        "job": story.job,
        "state": story.state,
        "cause": {
            "kind": story.cause.kind.name.lower(),
            "name": story.cause.name,
            "words": story.cause.words,
            "fix": story.cause.fix,
        },
        "first": _first_as_json(story.first),
        "fingerprint": story.fingerprint,
        "bad_nodes": list(story.bad_nodes),
        "behind": [{"hosts": list(each.hosts), "words": each.words} for each in story.stragglers],
        "notes": list(story.notes),
        "consequences": list(story.consequences),
        "moments": [vars(moment) for moment in story.timeline],
        "could_not_be_asked": dict(story.silent),
    }


def _first_as_json(first: Failure | None) -> dict[str, Any] | None:
    if first is None:
        return None
    return {
        "time": first.time,
        "host": first.host,
        "node_rank": first.node_rank,
        "rank": first.rank,
        "code": first.code,
        "exception": first.traceback.exception if first.traceback else None,
        "traceback": first.traceback.text if first.traceback else None,
        "log": first.path,
        "last_lines": list(first.lines),
    }

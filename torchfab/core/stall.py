"""The hang alarm: for how long no rank of a running job has logged, and what to say about it. Pure.

A job that hangs looks like one that trains: its processes run. What stops is its log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchfab.core.inventory import fold
from torchfab.core.log_lines import clean
from torchfab.core.status import JobStatus, NodeStatus, duration


@dataclass(frozen=True)
class Quiet:
    """For how long no running rank of a job has logged, and who logged last.

    Parameters
    ----------
    seconds : float
        Since the last line, or the last start of a rank, whichever came later.
    host : str
        Who logged last; empty where nobody has logged yet.
    label : int or str
        The rank that logged, `agent` for a launcher's own output; empty where that is not known.
    text : str
        The last line.
    unheard : tuple of str
        Nodes that cannot be asked: their ranks may have logged.
    """

    seconds: float
    host: str = ""
    label: int | str = ""
    text: str = ""
    unheard: tuple[str, ...] = ()


def quiet(job: JobStatus) -> Quiet | None:
    """Return for how long all running ranks have been silent; None where none runs, or the job has failed anyway.

    Ages are differences on each node's own clock, so that wrong clocks wake nobody.
    """
    signs = [sign for node in job.nodes for process in node.processes if (sign := _last_sign(node, process))]
    if not signs or job.has_failed or job.has_ended:
        return None
    newest = min(signs, key=lambda sign: sign.seconds)
    lines = [sign for sign in signs if sign.host]
    # Who has only been started again has logged nothing: the last line is another one's.
    last = min(lines, key=lambda sign: sign.seconds) if lines else Quiet(0.0)
    unheard = tuple(node.node.label for node in job.nodes if node.state == "unreachable")
    return Quiet(max(0.0, newest.seconds), last.host, last.label, last.text, unheard)


def _last_sign(node: NodeStatus, process: Mapping[str, Any]) -> Quiet | None:
    """Return the last sign of life of a process that runs; None for one that does not."""
    ranks = process["ranks"]
    if process["state"] != "running" or (ranks and all(rank["ended"] for rank in ranks)):
        return None
    line = process["last_line"]
    starts = [process["started"], *(rank["started"] for rank in ranks)]
    times = [when for when in (*starts, line and line["time"]) if when]
    if not times:
        return None
    age_s = node.now - max(times)
    return Quiet(age_s, node.node.label, line.get("label", ""), line["text"]) if line else Quiet(age_s)


def find(job: JobStatus, stall_s: float) -> Quiet | None:
    """Return the silence of a job that seems to hang; None where there is none.

    Parameters
    ----------
    stall_s : float
        After how many seconds of silence; 0: never.
    """
    found = quiet(job)
    return found if found and 0 < stall_s <= found.seconds else None


def words(found: Quiet, name: str) -> str:
    """Return what to tell people about a silence: how long, who logged what last, and what to do next."""
    elsewhere = f" ({fold(found.unheard)} cannot be asked)" if found.unheard else ""
    lines = [f"{name}: no rank has logged for {duration(found.seconds)}{elsewhere}: it may hang"]
    if found.host:
        who = f"{found.host} [{found.label}]" if found.label != "" else found.host
        lines.append(f"  the last line: {who} {clean(found.text)[:200]}")
    else:
        lines.append("  nothing was logged since it was started")
    lines.append(f"  what each rank is doing: fab stacks {name}")
    return "\n".join(lines)


def as_json(job: JobStatus, stall_s: float) -> dict[str, Any]:
    """Return the same for machines; `silent_s` is null where no rank runs."""
    found = quiet(job)
    return {
        "stalled": find(job, stall_s) is not None,
        "stall_s": stall_s,
        "silent_s": found.seconds if found else None,
        "host": found.host or None if found else None,
        "rank": found.label if found and isinstance(found.label, int) else None,
        "line": found.text if found and found.host else None,
    }

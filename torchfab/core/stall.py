"""Detect a hang: measure for how long no rank of a running job has logged, and render a warning. Pure.

Hanging processes look like training ones to the kernel. Only the logs show the difference.
"""

from __future__ import annotations

from typing import Any

from torchfab.core.format import duration
from torchfab.core.inventory import fold
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.log_lines import strip_controls
from torchfab.core.status import JobStatus, NodeStatus, ProcessStatus, State


@dataclass(frozen=True)
class Silence:
    """How long no running rank of a job has logged, and the last log line.

    Parameters
    ----------
    seconds : float
        Time since the last line or the last start of a rank, whichever came later.
    host : str
        The host of the last line; empty if no rank has logged yet.
    label : int or str
        The rank that wrote the last line, `agent` for a launcher's own output; empty if unknown.
    text : str
        The last line.
    unreachable : tuple of str
        Unreachable nodes: their ranks may have logged since.
    """

    seconds: float
    host: str = ""
    label: int | str = ""
    text: str = ""
    unreachable: tuple[str, ...] = ()


def measure_silence(job: JobStatus) -> Silence | None:
    """Measure for how long all running ranks of a job have been silent.

    Ages are differences on each node's own clock, so that wrong clocks cause no false alarm.

    Parameters
    ----------
    job : JobStatus
        The status of the job.

    Returns
    -------
    Silence or None
        None if no rank is running, or the job has already failed.
    """
    processes = [(node, process) for node in job.nodes for process in node.processes]
    activities = [activity for node, process in processes if (activity := _last_activity(node, process))]
    if not activities or job.has_failed or job.has_ended:
        return None
    newest = min(activities, key=lambda activity: activity.seconds)
    lines = [activity for activity in activities if activity.host]
    # A rank that was restarted and has not logged yet has no last line: the last line is another rank's.
    last = min(lines, key=lambda activity: activity.seconds) if lines else Silence(0.0)
    unheard = tuple(node.node.label for node in job.nodes if node.state == State.UNREACHABLE)
    return Silence(max(0.0, newest.seconds), last.host, last.label, last.text, unheard)


def _last_activity(node: NodeStatus, process: ProcessStatus) -> Silence | None:
    """Return the last log line or start of a running process; None for a process that is not running."""
    ranks = process.ranks
    if process.state != State.RUNNING or (ranks and all(rank.ended for rank in ranks)):
        return None
    line = process.last_line
    starts = [process.started, *(rank.started for rank in ranks)]
    times = [when for when in (*starts, line and line.time) if when]
    if not times:
        return None
    age_s = node.now - max(times)
    return Silence(age_s, node.node.label, line.label, line.text) if line else Silence(age_s)


def detect_stall(job: JobStatus, stall_s: float) -> Silence | None:
    """Return the silence of a job that seems to hang.

    Parameters
    ----------
    job : JobStatus
        The status of the job.
    stall_s : float
        Seconds of silence after which it counts as a hang; 0 for never.

    Returns
    -------
    Silence or None
        None if the job does not seem to hang.
    """
    silence = measure_silence(job)
    return silence if silence and 0 < stall_s <= silence.seconds else None


def render_warning(silence: Silence, name: str) -> str:
    """Render the warning about a silence: its duration, the last log line, and the next command to run.

    Parameters
    ----------
    silence : Silence
        As `detect_stall` returns it.
    name : str
        The job's name.

    Returns
    -------
    str
        Three lines.
    """
    unreachable = f" ({fold(silence.unreachable)} unreachable)" if silence.unreachable else ""
    lines = [f"{name}: no rank has logged for {duration(silence.seconds)}{unreachable}: it may hang"]
    if silence.host:
        writer = f"{silence.host} [{silence.label}]" if silence.label != "" else silence.host
        lines.append(f"  the last line: {writer} {strip_controls(silence.text)[:200]}")
    else:
        lines.append("  nothing was logged since the start")
    lines.append(f"  to see what each rank is doing: fab stacks {name}")
    return "\n".join(lines)


def as_json(job: JobStatus, stall_s: float) -> dict[str, Any]:
    """Return the silence of a job as JSON.

    Parameters
    ----------
    job : JobStatus
        The status of the job.
    stall_s : float
        Seconds of silence after which it counts as a hang; 0 for never.

    Returns
    -------
    dict of str to Any
        `silent_s` is None if no rank is running.
    """
    silence = measure_silence(job)
    return {
        "stalled": detect_stall(job, stall_s) is not None,
        "stall_s": stall_s,
        "silent_s": silence.seconds if silence else None,
        "host": silence.host or None if silence else None,
        "rank": silence.label if silence and isinstance(silence.label, int) else None,
        "line": silence.text if silence and silence.host else None,
    }

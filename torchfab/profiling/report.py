"""The summary of a profile, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torchfab.core.errors import failed_as_json
from torchfab.core.format import align_columns, plural
from torchfab.profiling.model import JobProfile, RankTimes
from torchfab.profiling.summary import Lateness, latest, shares

_HEAD = ["", "compute", "communication", "exposed", "data", "idle"]


def render(job: str, path: str, seconds: float, profile: JobProfile, ranks: Sequence[RankTimes]) -> str:
    """Return the summary.

    Parameters
    ----------
    job : str
        Name of the job.
    path : str
        The merged trace.
    seconds : float
        How long each rank was profiled.
    profile : JobProfile
        What was collected.
    ranks : sequence of RankTimes
        Where the time of each rank went.

    Returns
    -------
    str
        Human-readable text.
    """
    found = [shares(each) for each in ranks]
    rows = [[each.name, *_percent(list(asdict(each).values())[2:])] for each in found]
    lines = [f"job {job}: {plural(len(ranks), 'rank')} for {seconds:g} s, in {path}", "", align_columns([_HEAD, *rows])]
    if late := latest(ranks):
        lines += ["", *(_late_line(each, profile.clock_s) for each in late)]
    reasons = [f"rank {each.rank} on {each.host}: {each.reason}" for each in profile.missing]
    reasons += [f"{host}: {reason}" for host, reason in profile.failed.items()]
    return "\n".join([*lines, *(["", "without a profile:", *reasons] if reasons else [])])


def _percent(values: Sequence[float]) -> list[str]:
    return [f"{100 * each:.1f} %" for each in values]


def _late_line(each: Lateness, clock_s: float) -> str:
    head = f"{each.operation} of group {each.group}: {each.count} of {each.ms:.1f} ms"
    if each.late_ms <= clock_s * 1e3:
        return f"{head}; who comes last is not known: the clocks agree within {clock_s * 1e3:.1f} ms"
    return f"{head}; rank {each.rank} came last in {each.last}, by {each.late_ms:.1f} ms"


def as_json(job: str, path: str, seconds: float, profile: JobProfile, ranks: Sequence[RankTimes]) -> dict[str, Any]:
    """Return the summary for `--json`.

    Parameters
    ----------
    job, path, seconds, profile, ranks
        As of `render`.

    Returns
    -------
    dict
    """
    hosts = {each.rank: each.host for each in profile.ranks}
    return {
        "job": job,
        "path": path,
        "duration_s": seconds,
        "clock_uncertainty_s": profile.clock_s,
        "ranks": [{**asdict(shares(each)), "host": hosts[each.rank]} for each in ranks],
        "collectives": [_late_as_json(each) for each in latest(ranks)],
        "missing": [asdict(each) for each in profile.missing],
        "failed": failed_as_json(profile.failed),
    }


def _late_as_json(each: Lateness) -> dict[str, Any]:
    values = asdict(each)
    length_ms, late_ms = values.pop("ms"), values.pop("late_ms")
    return {**values, "duration_s": length_ms / 1e3, "late_s": late_ms / 1e3}

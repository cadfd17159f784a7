"""Where the time of each rank went, and which rank came last to the collectives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from torchfab.core.lazy_dataclass import dataclass
from torchfab.profiling.intervals import subtract, total, union
from torchfab.profiling.merge import Matched, matched
from torchfab.profiling.model import Collective, RankTimes


@dataclass(frozen=True)
class Shares:
    """Where the time of a rank went, as shares of its window; compute + exposed + data + idle is 1.

    Parameters
    ----------
    rank : int
        The rank.
    name : str
        Its row in the trace.
    compute : float
        Operators or kernels ran.
    communication : float
        Collectives ran or waited for other ranks, also beside compute.
    exposed : float
        Of it, without compute beside it.
    data : float
        The rank waited for its DataLoader, and nothing else ran.
    idle : float
        Nothing of these: Python code, waiting for something else.
    """

    rank: int
    name: str
    compute: float
    communication: float
    exposed: float
    data: float
    idle: float


@dataclass(frozen=True)
class Lateness:
    """Who came last to the collectives of one operation of a group.

    Parameters
    ----------
    group, operation : str
        The collectives.
    count : int
        How many of them at least two ranks have in their traces.
    ms : float
        Their median length, from the first arrival to the last end, in milliseconds.
    rank : int
        The rank that came last most often.
    last : int
        How often.
    late_ms : float
        How long it came after the first rank then: the median, in milliseconds.
    """

    group: str
    operation: str
    count: int
    ms: float
    rank: int
    last: int
    late_ms: float


def shares(times: RankTimes) -> Shares:
    """Return where the time of a rank went.

    Parameters
    ----------
    times : RankTimes
        The rank.

    Returns
    -------
    Shares
    """
    window = max(times.end - times.begin, 1e-9)
    exposed = subtract(times.communication, times.compute)
    busy = union([*times.compute, *times.communication])
    data = total(subtract(times.data, busy))
    parts = (total(times.compute), total(times.communication), total(exposed), data)
    idle = window - total(busy) - data
    return Shares(times.rank, times.name, *(max(0.0, each) / window for each in (*parts, idle)))


def latest(ranks: Sequence[RankTimes]) -> list[Lateness]:
    """Return who came last to the collectives.

    Parameters
    ----------
    ranks : sequence of RankTimes
        The ranks.

    Returns
    -------
    list of Lateness
        One for each operation of each group, those that took most time first.
    """
    by_kind: dict[tuple[str, str], list[list[tuple[int, Collective]]]] = {}
    matches: Matched = matched(ranks)
    for (group, _, operation), parts in matches.items():
        by_kind.setdefault((group, operation), []).append(parts)
    found = [_lateness(group, operation, each) for (group, operation), each in by_kind.items()]
    return sorted(found, key=lambda each: -each.ms * each.count)


def _lateness(group: str, operation: str, found: list[list[tuple[int, Collective]]]) -> Lateness:
    ((rank, last),) = Counter(parts[-1][0] for parts in found).most_common(1)
    late = median((parts[-1][1].begin - parts[0][1].begin) / 1e3 for parts in found if parts[-1][0] == rank)
    length = median((max(each.end for _, each in parts) - parts[0][1].begin) / 1e3 for parts in found)
    return Lateness(group, operation, len(found), length, rank, last, late)

"""Align the collectives of all ranks: find ranks that call a different collective than the others, or none.

Ranks of a process group must call the same collectives in the same order. The first call of a group that has not ended
is compared on all of its ranks:

    other operations      ORDER    other sizes or types   SIZE
    not called            MISSING (the next one), BEHIND (several), GONE (the rank has ended)
    each waits in another group for the other             CYCLE

A rank that waits in another group is not reported as the cause; the rank that holds up that group is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum

from torchfab.collectives.model import Call, Group, RankHistory, Snapshot
from torchfab.core.format import duration
from torchfab.core.inventory import fold_ranks
from torchfab.core.lazy_dataclass import dataclass

# A rank that is late by less than this is not reported: ranks are asked at slightly different times.
PATIENCE_S = 1.0
# Operations for which the ranks must give tensors of equal size. (Of gather and scatter only one rank gives the list.)
_EQUAL_SIZES = ("all_reduce", "allreduce", "broadcast", "reduce", "all_gather", "allgather", "reduce_scatter")


class Kind(Enum):
    """Kinds of faults in the collectives of a group; the values are those of `--json`."""

    ORDER = "order"
    SIZE = "size"
    GONE = "gone"
    BEHIND = "behind"
    MISSING = "missing"
    CYCLE = "cycle"


@dataclass(frozen=True)
class Verdict:
    """A fault that holds up a process group.

    Parameters
    ----------
    kind : Kind
        Kind of the fault.
    ranks : tuple of int
        The ranks that differ from the others.
    hosts : tuple of str
        Their nodes.
    group : Group
        The group.
    number : int
        The number of the collective.
    words : str
        One sentence, human-readable.
    """

    kind: Kind
    ranks: tuple[int, ...]
    hosts: tuple[str, ...]
    group: Group
    number: int
    words: str


def find_verdicts(snapshot: Snapshot, patience_s: float = PATIENCE_S) -> tuple[Verdict, ...]:
    """Find the faults that hold up the collectives of a job.

    Parameters
    ----------
    snapshot : Snapshot
        The collectives of its ranks.
    patience_s : float
        Do not report a rank that is late by less than this, in seconds. Default 1.

    Returns
    -------
    tuple of Verdict
        The most certain first. Empty if no rank waits, or nothing is known.
    """
    fronts = [front for group in groups_of(snapshot) if (front := _front(snapshot, group))]
    waiting = {rank for front in fronts for rank in front.waiting}
    found = [verdict for front in fronts for verdict in _judge(front, waiting, patience_s)]
    if not found:
        found = list(_cycles(fronts, patience_s))
    return tuple(sorted(found, key=lambda verdict: list(Kind).index(verdict.kind)))


def groups_of(snapshot: Snapshot) -> list[Group]:
    """Return the process groups of a job, each with the ranks that are known to belong to it.

    Parameters
    ----------
    snapshot : Snapshot
        The collectives of its ranks.

    Returns
    -------
    list of Group
        In the order of their names.
    """
    descriptions: dict[str, str] = {}
    members: dict[str, set[int]] = {}
    for history in snapshot.ranks.values():
        for group in history.groups:
            descriptions[group.name] = group.description
            members.setdefault(group.name, set()).update(group.ranks or (history.rank,))
    return [
        Group(name, descriptions[name], tuple(sorted(members[name])))
        for name in sorted(members, key=lambda name: (len(name), name))
    ]


# ---- the front of a group: its first call that has not ended


@dataclass(frozen=True)
class _Front:
    """The first call of a group that has not ended on some rank, and the position of each rank of the group."""

    group: Group
    number: int
    calls: Mapping[int, Call]  # those of this number, by rank
    last: Mapping[int, int]  # the last number of each rank that has none of this number; 0 for none at all
    histories: Mapping[int, RankHistory]

    @property
    def waiting(self) -> list[int]:
        """The ranks whose call has not ended."""
        return sorted(rank for rank, call in self.calls.items() if not call.has_ended)

    @property
    def age_s(self) -> float:
        """The longest waiting time of its ranks, in seconds."""
        return max(self.calls[rank].age_s for rank in self.waiting)

    def name(self, call: Call) -> str:
        return f"{call.operation} no. {call.number}{self.group.suffix}"


def _front(snapshot: Snapshot, group: Group) -> _Front | None:
    known = {rank: snapshot.ranks[rank] for rank in group.ranks if rank in snapshot.ranks}
    calls = {rank: history.of_group(group.name) for rank, history in known.items()}
    pending = [call.number for each in calls.values() for call in each.values() if not call.has_ended]
    if not pending:
        return None
    number = min(pending)
    at = {rank: each[number] for rank, each in calls.items() if number in each}
    last = {rank: max(each, default=0) for rank, each in calls.items() if rank not in at}
    # A rank whose call of this number is no longer kept has passed it.
    late = {rank: seen for rank, seen in last.items() if seen < number}
    return _Front(group, number, at, late, known)


def _judge(front: _Front, waiting: set[int], patience_s: float) -> Iterator[Verdict]:
    mismatch = _mismatch(front)
    if mismatch:
        yield mismatch
        return
    late = [rank for rank in front.last if rank not in waiting]
    gone = [rank for rank in late if front.histories[rank].has_ended]
    if gone:
        yield _gone(front, gone)
    if front.age_s >= patience_s:
        yield from _late(front, [rank for rank in late if rank not in gone])


# ---- verdicts


def _mismatch(front: _Front) -> Verdict | None:
    """Return the verdict on calls of one number that do not match."""
    operations = {rank: call.operation for rank, call in front.calls.items()}
    if len(set(operations.values())) > 1:
        return _differing(front, Kind.ORDER, operations)
    if next(iter(operations.values())).lstrip("_") not in _EQUAL_SIZES:
        return None
    tensors = {rank: f"{call.inputs.numel} {sorted(set(call.inputs.types))}" for rank, call in front.calls.items()}
    return _differing(front, Kind.SIZE, tensors) if len(set(tensors.values())) > 1 else None


def _differing(front: _Front, kind: Kind, keys: Mapping[int, str]) -> Verdict:
    usual = _usual(keys)
    odd = sorted(rank for rank, key in keys.items() if key != usual)
    clauses = []
    for key in dict.fromkeys(keys[rank] for rank in odd):
        ranks = [rank for rank in odd if keys[rank] == key]
        call = front.calls[ranks[0]]
        clauses.append(f"{_named(ranks)} called {front.name(call)}{call.details}")
    others = [rank for rank, key in keys.items() if key == usual]
    call = front.calls[min(others)]
    words = "; ".join(clauses) + f"; {_others(others)} {front.name(call)}{call.details}"
    return _verdict(front, kind, odd, words)


def _usual(keys: Mapping[int, str]) -> str:
    """Return the most frequent key; of equally frequent ones, that of the lowest rank."""
    counts = Counter(keys[rank] for rank in sorted(keys))
    return max(counts, key=lambda key: counts[key])


def _gone(front: _Front, ranks: Sequence[int]) -> Verdict:
    has = "has" if len(ranks) == 1 else "have"
    words = f"{_named(ranks)} {has} ended, and {_describe_waiting(front)}"
    return _verdict(front, Kind.GONE, ranks, words)


def _late(front: _Front, ranks: Sequence[int]) -> Iterator[Verdict]:
    """Yield the verdicts on ranks that have not called the collective that others wait in: one for each distance."""
    head = max((max(front.histories[rank].of_group(front.group.name)) for rank in front.calls), default=front.number)
    distances: dict[int, list[int]] = {}
    for rank in ranks:
        distances.setdefault(head - front.last[rank], []).append(rank)
    for distance, late in sorted(distances.items(), reverse=True):
        call = front.calls[front.waiting[0]]
        where = _where(front, late)
        if front.last[late[0]] == front.number - 1:
            has = "has" if len(late) == 1 else "have"
            words = f"{_named(late)} {has} not reached {front.name(call)}{where}; {_describe_waiting(front, False)}"
            yield _verdict(front, Kind.MISSING, late, words)
        else:
            is_are = "is" if len(late) == 1 else "are"
            suffix = front.group.suffix
            words = (
                f"{_named(late)} {is_are} {distance} collectives behind{suffix}: at no. {front.last[late[0]]}{where}; "
                + _describe_waiting(front)
            )
            yield _verdict(front, Kind.BEHIND, late, words)


def _where(front: _Front, ranks: Iterable[int]) -> str:
    lines = {line.short: line for rank in ranks if (line := front.histories[rank].line)}
    if not lines:
        return ""
    name, line = next(iter(lines.items()))
    function = "" if line.function == "<module>" else f" in {line.function}"
    return f", at {name}{function}" + (f" and {len(lines) - 1} other places" if len(lines) > 1 else "")


def _describe_waiting(front: _Front, with_name: bool = True) -> str:
    """Describe which ranks wait, in which call and for how long."""
    call = front.calls[front.waiting[0]]
    waits = "waits" if len(front.waiting) == 1 else "wait"
    where = f"in {front.name(call)}{call.details}" if with_name else f"there{call.details}"
    since = f" for {duration(front.age_s)}" if front.age_s >= 1 else ""
    return f"{_named(front.waiting)} {waits} {where}{since}"


def _verdict(front: _Front, kind: Kind, ranks: Sequence[int], words: str) -> Verdict:
    hosts = tuple(dict.fromkeys(front.histories[rank].host for rank in ranks))
    return Verdict(kind, tuple(ranks), hosts, front.group, front.number, words)


def _cycles(fronts: Sequence[_Front], patience_s: float) -> Iterator[Verdict]:
    """Yield a verdict on ranks that wait for each other in several groups."""
    held = [front for front in fronts if front.last and front.age_s >= patience_s]
    while True:  # leave out the groups that are not part of the cycle
        inner = [front for front in held if any(set(front.last) & set(other.waiting) for other in held)]
        if len(inner) == len(held):
            break
        held = inner
    if len(held) < 2:
        return
    clauses = []
    for front in held:
        call = front.calls[front.waiting[0]]
        clauses.append(f"{_named(front.waiting)} in {front.name(call)}{call.details} for {_named(sorted(front.last))}")
    histories = {rank: history for front in held for rank, history in front.histories.items()}
    ranks = tuple(sorted({rank for front in held for rank in front.waiting}))
    hosts = tuple(dict.fromkeys(histories[rank].host for rank in ranks))
    words = f"{_named(ranks)} wait for each other in {len(held)} groups: {', '.join(clauses)}"
    yield Verdict(Kind.CYCLE, ranks, hosts, held[0].group, held[0].number, words)


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {fold_ranks(ranks)}"


def _others(ranks: Sequence[int]) -> str:
    """Name the other ranks: their numbers if they are fewer than three, otherwise their count."""
    return _named(ranks) if len(ranks) < 3 else f"{len(ranks)} others"

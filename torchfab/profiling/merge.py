"""One Chrome trace of all ranks: a process for each rank, one clock, and arrows along each collective."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

import msgspec

from torchfab.profiling import trace
from torchfab.profiling.model import Collective, RankProfile, RankTimes

# The same collective on all ranks that have it in their traces: rank and its part.
Matched: TypeAlias = dict[tuple[str, int, str], list[tuple[int, Collective]]]
_LEVEL = 4  # of gzip: half the time of its default, and 10 % larger


def write(profiles: Sequence[RankProfile], path: Path) -> list[RankTimes]:
    """Merge the traces of all ranks into one file; one trace at a time is in memory.

    Parameters
    ----------
    profiles : sequence of RankProfile
        The ranks, at least one.
    path : Path
        The file to write: `*.json.gz`.

    Returns
    -------
    list of RankTimes
        Where the time of each rank went.

    Raises
    ------
    ValueError
        A trace cannot be read; the message names the rank.
    OSError
        The file cannot be written.
    """
    zero_ns = round(min(each.begun - each.offset_s for each in profiles) * 1e9)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with gzip.open(new, "wb", compresslevel=_LEVEL) as file:
            found = _write(profiles, cast(BinaryIO, file), zero_ns)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    return found


def _write(profiles: Sequence[RankProfile], file: BinaryIO, zero_ns: int) -> list[RankTimes]:
    file.write(b'{"schemaVersion": 1, "displayTimeUnit": "ms", "baseTimeNanoseconds": %d,\n' % zero_ns)
    file.write(b'"traceEvents": [\n{"ph": "M", "name": "trace", "pid": 0, "tid": 0, "ts": 0, "args": {}}')
    found = []
    for each in profiles:
        try:
            read = trace.read(each.path)
            shift = trace.shift_us(each, read, zero_ns)
            times = trace.times(each, read["traceEvents"], shift, zero_ns)
            _write_events(file, [*_name_events(times), *trace.moved(read["traceEvents"], each.rank, shift)])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the trace of rank {each.rank} cannot be read: {error}") from None
        found.append(times)
    _write_events(file, arrows(matched(found)))
    file.write(b"\n]}\n")
    return found


def _write_events(file: BinaryIO, events: Iterable[Mapping[str, object]]) -> None:
    file.writelines(b",\n" + msgspec.json.encode(event) for event in events)


def _name_events(times: RankTimes) -> Iterator[dict[str, object]]:
    base = {"ph": "M", "pid": times.rank, "tid": 0, "ts": 0}
    yield {**base, "name": "process_name", "args": {"name": times.name}}
    yield {**base, "name": "process_sort_index", "args": {"sort_index": times.rank}}


def matched(ranks: Sequence[RankTimes]) -> Matched:
    """Find the same collective on several ranks: by group, number and operation.

    Parameters
    ----------
    ranks : sequence of RankTimes
        The ranks.

    Returns
    -------
    dict
        Those that at least two ranks have and no rank has cut; the ranks in the order of their arrival.
    """
    found: Matched = {}
    for times in ranks:
        for each in times.collectives:
            found.setdefault((each.group, each.number, each.operation), []).append((times.rank, each))
    return {
        key: sorted(parts, key=lambda part: part[1].begin)
        for key, parts in found.items()
        if len({rank for rank, _ in parts}) > 1 and not any(each.cut for _, each in parts)
    }


def arrows(matches: Matched) -> Iterator[dict[str, object]]:
    """Yield the events of the arrows along each collective: from the rank that came first to the one that came last.

    Parameters
    ----------
    matches : dict
        As `matched` returns it.

    Yields
    ------
    dict
        Flow events of the Chrome trace format.
    """
    for number, ((group, order, operation), parts) in enumerate(matches.items(), 1):
        name = f"{operation} no. {order} of group {group}"
        for at, (rank, each) in enumerate(parts):
            kind = "s" if at == 0 else "f" if at == len(parts) - 1 else "t"
            place = {"pid": rank, "tid": each.tid, "ts": each.begin}
            yield {"ph": kind, "cat": "collective", "name": name, "id": number, "bp": "e", **place}

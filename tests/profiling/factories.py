"""Traces as torch.profiler writes them, and what was collected of a rank."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torchfab.profiling.model import Call, Collective, RankProfile, RankTimes

BASE = 1_700_000_000  # seconds since the epoch: zero of the traces


def span(name: str, begin: float, end: float, tid: int = 1, cat: str = "cpu_op", **args: Any) -> dict[str, Any]:
    """Return a complete event; its times are in milliseconds since `BASE`."""
    times = {"ts": begin * 1e3, "dur": (end - begin) * 1e3}
    return {"ph": "X", "cat": cat, "name": name, "pid": 77, "tid": tid, **times, "args": args}


def reduced(begin: float, end: float, tid: int = 9) -> dict[str, Any]:
    """Return the execution of an all-reduce by gloo."""
    return span("gloo:all_reduce", begin, end, tid, "user_annotation")


def write_trace(path: Path, events: Sequence[Any]) -> Path:
    """Write a trace whose times begin at `BASE`."""
    trace = {"baseTimeNanoseconds": BASE * 10**9, "traceEvents": list(events)}
    with gzip.open(path, "wt") as file:
        json.dump(trace, file)
    return path


def profiled(path: Path, rank: int = 0, offset_s: float = 0.0, **more: Any) -> RankProfile:
    """Return a rank that was profiled for a second from `BASE` on, by its own clock."""
    fields: dict[str, Any] = {"begun": float(BASE), "ended": BASE + 1.0, **more}
    return RankProfile(rank, f"node{rank}", path, offset_s=offset_s, **fields)


def calls(times: Iterable[float], first: int = 1, operation: str = "gloo:all_reduce") -> tuple[Call, ...]:
    """Return calls of a collective at times in milliseconds since `BASE`."""
    return tuple(Call("0", number, operation, BASE + each / 1e3) for number, each in enumerate(times, first))


def ranked(rank: int, *collectives: tuple[int, float, float], cut: int = 0) -> RankTimes:
    """Return a rank with all-reduces: number, begin, end in milliseconds; that of number `cut` is cut."""
    found = [
        Collective("0", number, "all_reduce", 9, begin * 1e3, end * 1e3, number == cut)
        for number, begin, end in collectives
    ]
    return RankTimes(rank, f"rank {rank} on node{rank}", 0.0, 1e6, (), (), (), tuple(found))

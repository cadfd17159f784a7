"""The trace of one rank, as torch.profiler writes it: its events on the clock of this machine, and where its time went.

Kineto writes times in microseconds since `baseTimeNanoseconds`, by the clock of the node.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from torchfab.core.log_lines import strip_controls
from torchfab.profiling.calls import numbered
from torchfab.profiling.intervals import Interval, clip, subtract, union
from torchfab.profiling.model import Call, Collective, RankProfile, RankTimes

Event: TypeAlias = dict[str, Any]
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_OPERATORS = ("cpu_op",)
_CALLS = ("c10d::", "record_param_comms")
_EXECUTED = ("gloo:", "mpi:")
_LOADER = "enumerate(DataLoader)#"
_EDGE_US = 100.0  # between the clock that dates the profile, and that of its events
_MAX_BYTES = 8 << 30  # of an unpacked trace
_FLOW_IDS = 1 << 32  # of one rank; JavaScript keeps 53 bits


def read(path: Path) -> dict[str, Any]:
    """Read a trace of torch.profiler.

    Parameters
    ----------
    path : Path
        `*.json.gz`.

    Returns
    -------
    dict
        With `traceEvents` and `baseTimeNanoseconds`.

    Raises
    ------
    ValueError
        It is not such a trace.
    """
    try:
        with gzip.open(path) as file:
            data = file.read(_MAX_BYTES)
        found = _decode(data)
    except (OSError, EOFError) as error:
        raise ValueError(str(error)) from None
    if not isinstance(found, dict) or not isinstance(found.get("traceEvents"), list):
        raise ValueError("it has no traceEvents")
    return found


def _decode(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:  # NaN, which kineto may write
        return json.loads(data)


def rank_name(profile: RankProfile, events: Iterable[Event]) -> str:
    """Return the name of the row of a rank.

    Parameters
    ----------
    profile : RankProfile
        The rank.
    events : iterable of dict
        The events of its trace.

    Returns
    -------
    str
        `rank 3 on node1 (gpu 3)`; without a GPU `rank 3 on node1`.
    """
    visible = [each for each in profile.devices.split(",") if each]
    used = sorted({each["args"]["device"] for each in events if each.get("cat") == "kernel" and _device(each)})
    names = [visible[each] if each < len(visible) else str(each) for each in used]
    where = f" (gpu {','.join(names)})" if names else ""
    return f"rank {profile.rank} on {profile.host}{where}"


def _device(event: Event) -> bool:
    return isinstance(event.get("args", {}).get("device"), int) and event["args"]["device"] >= 0


def shift_us(profile: RankProfile, trace: dict[str, Any], zero_ns: int) -> float:
    """Return what is added to the times of a trace, in microseconds.

    Parameters
    ----------
    profile : RankProfile
        The rank, with the offset of its clock.
    trace : dict
        Its trace.
    zero_ns : int
        Zero of the merged trace, by the clock of this machine, in nanoseconds since the epoch.

    Returns
    -------
    float
    """
    base_ns = int(trace.get("baseTimeNanoseconds", 0))
    return (base_ns - zero_ns - round(profile.offset_s * 1e9)) / 1000


def moved(events: Iterable[Event], rank: int, shift: float) -> Iterator[Event]:
    """Yield the events of a rank for the merged trace.

    Parameters
    ----------
    events : iterable of dict
        The events of its trace.
    rank : int
        The rank: its process in the merged trace.
    shift : float
        As `shift_us` returns it.

    Yields
    ------
    dict
        Without those that describe the process or the profiler.
    """
    for event in events:
        kind = event.get("ph")
        if event.get("cat") == "Trace" or not isinstance(event.get("ts"), (int, float)):
            continue
        if not isinstance(event.get("tid"), int):  # marks of the profiler itself
            continue
        if kind == "M" and event.get("name") not in ("thread_name", "thread_sort_index"):
            continue
        changed = {**event, "pid": rank, "ts": event["ts"] + shift}
        if kind in ("s", "t", "f") and isinstance(event.get("id"), int):
            changed["id"] = event["id"] % _FLOW_IDS + (rank + 1) * _FLOW_IDS
        yield changed


def times(profile: RankProfile, events: list[Event], shift: float, zero_ns: int) -> RankTimes:
    """Return where the time of a rank went.

    On a GPU, its kernels count. On a CPU the operators do, without what they spend in the call of a collective.

    Parameters
    ----------
    profile : RankProfile
        The rank.
    events : list of dict
        The events of its trace.
    shift, zero_ns
        As of `shift_us`.

    Returns
    -------
    RankTimes
    """
    spans = [each for each in events if each.get("ph") == "X" and isinstance(each.get("dur"), (int, float))]
    kernels = [each for each in spans if each.get("cat") in _ON_GPU]
    executed = [each for each in spans if is_collective(each)]
    communication = _intervals(executed)
    data = _intervals(each for each in spans if str(each.get("name")).startswith(_LOADER))
    if kernels:
        compute = _intervals(each for each in kernels if not is_collective(each))
    else:
        compute = subtract(_operators(spans), data)
    begin, end = ((each - profile.offset_s - zero_ns / 1e9) * 1e6 for each in (profile.begun, profile.ended))
    window = begin - shift, end - shift

    def within(found: list[Interval]) -> tuple[Interval, ...]:
        return tuple((first + shift, last + shift) for first, last in clip(found, *window))

    return RankTimes(
        *(profile.rank, rank_name(profile, events), begin, end),
        *(within(compute), within(communication), within(data)),
        tuple(_collectives(profile, executed, shift, zero_ns, end)),
    )


def _operators(spans: list[Event]) -> list[Interval]:
    """Return when operators ran on any thread, without the calls of collectives within them."""
    by_thread: dict[Any, tuple[list[Event], list[Event]]] = {}
    for each in spans:
        if each.get("cat") in _OPERATORS:
            operators, calls = by_thread.setdefault(each.get("tid"), ([], []))
            (calls if str(each["name"]).startswith(_CALLS) else operators).append(each)
    left = [subtract(_intervals(operators), _intervals(calls)) for operators, calls in by_thread.values()]
    return union(interval for each in left for interval in each)


def _intervals(spans: Iterable[Event]) -> list[Interval]:
    return union((each["ts"], each["ts"] + each["dur"]) for each in spans)


def is_collective(event: Event) -> bool:
    """Return whether an event is the execution of a collective: by gloo or MPI on the CPU, or a kernel of NCCL.

    Parameters
    ----------
    event : dict
        The event.

    Returns
    -------
    bool
    """
    name = str(event.get("name"))
    if event.get("cat") == "kernel":
        return name.startswith(("nccl", "rccl"))
    return event.get("cat") in ("user_annotation", "cpu_op") and name.startswith(_EXECUTED)


def _collectives(
    profile: RankProfile, executed: list[Event], shift: float, zero_ns: int, window_end: float
) -> Iterator[Collective]:
    """Yield the collectives with their numbers, in the order in which they began.

    torch gives one that has not ended the end of the profile, and omits one that began before the profile.
    """
    ordered = sorted(executed, key=lambda each: each["ts"])
    began = [((each["ts"] + shift) / 1e6 + zero_ns / 1e9 + profile.offset_s, _operation(each)) for each in ordered]
    for event, call in zip(ordered, numbered(began, profile.calls), strict=True):
        begin = event["ts"] + shift
        known = _call_of(event) or call
        if known is not None:
            operation = strip_controls(known.operation.partition(":")[2] or known.operation)
            end = begin + event["dur"]
            cut = end > window_end - _EDGE_US
            yield Collective(known.group, known.number, operation, event["tid"], begin, end, cut)


def _operation(event: Event) -> str:
    named = event.get("args", {}).get("Collective name")
    return f"nccl:{named}" if named else str(event["name"])


def _call_of(event: Event) -> Call | None:
    """Return the call that a kernel says it belongs to, where torch has written its number."""
    args = event.get("args", {})
    group, number = args.get("Process Group Name"), args.get("Seq")
    if group is None or not isinstance(number, int):
        return None
    return Call(strip_controls(str(group)), number, _operation(event), 0.0)

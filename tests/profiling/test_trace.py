"""The trace of one rank: where its time went, and what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.profiling.factories import BASE, calls, profiled, reduced, span, write_trace
from torchfab.profiling import trace
from torchfab.profiling.model import RankProfile, RankTimes

NOWHERE = Path("/nowhere")


def times_of(profile: RankProfile, events: list[dict[str, Any]]) -> RankTimes:
    """Return the times of a rank in a merged trace that begins when it does."""
    zero_ns = round((profile.begun - profile.offset_s) * 1e9)
    shift = trace.shift_us(profile, {"baseTimeNanoseconds": BASE * 10**9}, zero_ns)
    return trace.times(profile, events, shift, zero_ns)


def test_the_time_of_a_rank_on_a_cpu() -> None:
    events = [
        span("aten::mm", 100, 300),
        span("aten::add", 150, 200),
        span("c10d::allreduce_", 250, 260),
        span("enumerate(DataLoader)#_SingleProcess.__next__", 400, 500, cat="user_annotation"),
        span("aten::stack", 420, 480),
        reduced(280, 390),
    ]
    found = times_of(profiled(NOWHERE, calls=calls([279], first=7)), events)
    assert found.compute == ((100e3, 250e3), (260e3, 300e3))
    assert found.communication == ((280e3, 390e3),)
    assert found.data == ((400e3, 500e3),)
    assert [(each.number, each.operation, each.cut) for each in found.collectives] == [(7, "all_reduce", False)]


def test_on_a_gpu_its_kernels_count() -> None:
    gpu: dict[str, Any] = {"cat": "kernel", "device": 1}
    named: dict[str, Any] = {"Collective name": "allreduce\x1b[31m", "Process Group Name": "0\x07", "Seq": 12}
    events = [
        span("aten::mm", 0, 900),
        span("sgemm", 100, 200, 7, **gpu),
        span("ncclDevKernel_AllReduce", 150, 400, 13, **gpu, **named),
    ]
    found = times_of(profiled(NOWHERE, devices="4,6"), events)
    assert found.name == "rank 0 on node0 (gpu 6)"
    assert found.compute == ((100e3, 200e3),)
    assert found.communication == ((150e3, 400e3),)
    (one,) = found.collectives
    assert (one.group, one.number, one.operation) == ("0", 12, "allreduce")  # without control characters


def test_what_the_end_of_the_profile_cuts_is_marked() -> None:
    events = [reduced(100, 200), reduced(900, 1000.4)]  # torch ends it when the profile ends
    found = times_of(profiled(NOWHERE, calls=calls([99, 899])), events)
    assert [each.cut for each in found.collectives] == [False, True]
    assert found.communication[-1] == (900e3, 1000e3)


def test_the_clock_of_the_node_is_corrected() -> None:
    found = times_of(profiled(NOWHERE, offset_s=300.0, calls=calls([99])), [reduced(100, 200)])
    assert (found.begin, found.end) == (0.0, 1e6)
    assert found.communication == ((100e3, 200e3),)
    assert found.collectives[0].number == 1


def test_events_move_to_the_process_and_the_clock_of_the_merged_trace() -> None:
    flow = {"ph": "s", "id": 5, "pid": 77, "tid": 1, "ts": 1.0, "name": "ac2g", "cat": "ac2g"}
    mark = {"ph": "M", "name": "process_name", "pid": 77, "tid": 0, "ts": 0, "args": {}}
    thread = {"ph": "M", "name": "thread_name", "pid": 77, "tid": 1, "ts": 0, "args": {"name": "x"}}
    profiler = {
        "ph": "X",
        "cat": "Trace",
        "name": "PyTorch Profiler (0)",
        "pid": "Spans",
        "tid": "x",
        "ts": 0,
        "dur": 1,
    }
    found = list(trace.moved([flow, mark, thread, profiler, span("aten::mm", 1, 2)], 3, 10.0))
    assert [(each["name"], each["pid"], each["ts"]) for each in found] == [
        ("ac2g", 3, 11.0),
        ("thread_name", 3, 10.0),
        ("aten::mm", 3, 1010.0),
    ]
    assert found[0]["id"] != 5  # equal in no two ranks


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json.gz"
    for data in (b"", b"no gzip", b"\x1f\x8b\x08"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"."):
            trace.read(path)
    assert trace.read(write_trace(path, []))["traceEvents"] == []

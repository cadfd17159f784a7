"""`fab top`: from the load of nodes to tables and JSON."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.factories import make_nodes
from tests.json_documents import checked
from torchfab.monitoring import host_load
from torchfab.monitoring.host_load import HostLoad, Snapshot
from torchfab.transport.messages.load import GpuLoad, NodeLoad

GPU = {
    "index": 0,
    "uuid": "GPU-1",
    "name": "NVIDIA H100 80GB HBM3",
    "utilization": 100.0,
    "power": 640.0,
    "power_limit": 700.0,
    "memory": 71680.0,
    "memory_total": 81559.0,
    "temperature": 63.0,
    "sick": "",
    "processes": [{"pid": 4711, "memory": 70000.0, "name": "/venv/bin/python"}],
}


def loaded(**values: Any) -> dict[str, Any]:
    base = {
        "cpu": 0.25,
        "cpus": 8,
        "memory": 2 << 30,
        "memory_total": 64 << 30,
        "load": 1.25,
        "problem": "",
        "gpus": [],
    }
    rates = {"disk_read": 0, "disk_written": 1 << 20, "received": 10, "sent": 2048, "time": 100.0, "job": None}
    return {**base, **rates, **values}


def job(step: int | None = 7, age_s: float = 1.0, **values: Any) -> dict[str, Any]:
    line = {"time": 100.0 - age_s, "text": f"step={step}", "label": 0}
    process = {"name": "rank-0", "state": "running", "reason": "", "started": 10.0, "ended": None, "ranks": []}
    process |= {"pid": 50, "code": None, "signal": None, "warned": None, "reported": []}
    status = {"processes": [{**process, "last_line": line}], "now": 100.0, "exists": True, "stop_asked": None}
    pace = {"step": step, "steps": 100, "steps_s": 2.0, "lines_s": 2.0, "silent_s": age_s}
    return {"status": status, **pace, **values}


def snapshot(*loads: dict[str, Any] | str | None, **values: Any) -> Snapshot:
    nodes = make_nodes(*(f"node{index + 1}" for index in range(len(loads))))
    views = [
        HostLoad(node, error=each) if isinstance(each, str) else HostLoad(node, msgspec.convert(each, NodeLoad | None))
        for node, each in zip(nodes, loads, strict=True)
    ]
    return Snapshot(100.0, tuple(views), **{"job": "gpt2", "job_ranks": frozenset({0, 1}), "stall_s": 300.0, **values})


def test_a_gpu_has_a_row_with_its_load() -> None:
    shown = host_load.render(snapshot(loaded(gpus=[GPU])))
    row = next(line for line in shown.splitlines() if "4711" in line)
    assert row.split() == ["node1", "0", "100", "%", "640/700", "W", "70.0/79.6", "GiB", "63", "C", "python(4711)"]


def test_values_that_the_driver_does_not_report_are_question_marks() -> None:
    names = ("utilization", "power", "power_limit", "memory", "memory_total", "temperature")
    shown = host_load.render(snapshot(loaded(gpus=[{**GPU, **dict.fromkeys(names), "processes": []}])))
    assert "node1  0    ?     ?      ?       ?" in shown


@pytest.mark.parametrize(
    ("gpu", "runs", "mark"),
    [
        ({"power": 95.0}, True, "low power: waits or hangs"),
        ({"power": 95.0}, False, ""),
        ({"power": 95.0, "processes": []}, True, ""),
        ({"power": None}, True, ""),
        ({"power": 95.0, "power_limit": None}, True, ""),
        ({"power": 640.0}, True, ""),
        ({"sick": "GPU requires reset"}, False, "GPU requires reset"),
    ],
)
def test_a_gpu_with_low_power_under_a_running_job_is_marked(gpu: dict[str, Any], runs: bool, mark: str) -> None:
    assert host_load.gpu_mark(msgspec.convert({**GPU, **gpu}, GpuLoad), runs) == mark


def test_the_job_line_has_its_step_and_step_rate() -> None:
    shown = host_load.render(snapshot(loaded(job=job(step=7)), loaded(job=job(step=None, steps_s=None))))
    assert shown.splitlines()[0] == "job gpt2: running, step 7 of 100, 2 steps/s, last line 1 s ago"


def test_a_silent_job_is_reported_as_hanging() -> None:
    assert "it may hang" not in host_load.render(snapshot(loaded(job=job(age_s=29)), stall_s=30))
    assert "gpt2: no rank has logged for" in host_load.render(snapshot(loaded(job=job(age_s=31)), stall_s=30))


def test_a_job_is_unreachable_only_if_its_own_host_is() -> None:
    loads = (loaded(job=job()), "down")
    assert "job gpt2: unreachable" in host_load.render(snapshot(*loads))
    assert "job gpt2: running" in host_load.render(snapshot(*loads, job_ranks=frozenset({0})))


def test_without_a_job_there_is_no_job_line() -> None:
    assert host_load.render(snapshot(loaded())).startswith("host ")


def test_an_unreachable_node_stays_in_the_table() -> None:
    shown = host_load.render(snapshot(loaded(), "no answer from node2", None))
    rows = shown.splitlines()
    assert rows[1].startswith("node1  25 % of 8  2.0/64.0 GiB  1.2   0 B/s 1 MiB/s  10 B/s 2 KiB/s")
    assert rows[2].endswith("unreachable: no answer from node2")
    assert rows[3].endswith("connecting")


def test_many_nodes_with_similar_load_are_one_row() -> None:
    loads = [loaded(cpu=0.5 + index / 10000, sent=index) for index in range(39)]
    shown = host_load.render(snapshot(*loads, loaded(cpu=0.9)))
    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["node[1-39]", "node40"]
    assert len(host_load.render(snapshot(*loads[:32])).splitlines()) == 33


def test_the_json_has_job_and_nodes() -> None:
    load = loaded(gpus=[GPU], job=job())
    document = checked("top", host_load.as_json(snapshot(load, "down", None)))
    assert document["job"]["state"] == "unreachable"
    assert (document["job"]["step"], document["job"]["steps_s"]) == (7, 2.0)
    first, second, third = document["nodes"]
    assert (first["host"], first["error"], first["cpu_percent"], first["cpus"]) == ("node1", None, 25, 8)
    assert (first["memory_bytes"], first["disk_written_bytes_s"], first["sent_bytes_s"]) == (2 << 30, 1 << 20, 2048)
    (gpu,) = first["gpus"]
    assert (gpu["memory_bytes"], gpu["memory_total_bytes"]) == (70 << 30, 81559 << 20)
    assert (gpu["power_w"], gpu["utilization_percent"], gpu["mark"]) == (640, 100, "")
    assert gpu["processes"] == [{"pid": 4711, "name": "/venv/bin/python", "memory_bytes": 70000 << 20}]
    assert (second["error"], third["error"]) == ("down", None)
    values = {key: value for key, value in second.items() if key not in ("host", "error", "gpus")}
    assert values.keys() == first.keys() - {"host", "error", "gpus"}
    assert {*values.values()} == {None}
    assert second["gpus"] == third["gpus"] == []

"""Warnings of a launch, from the nodes' answers in phase one. They never stop it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import strategies as some

from tests.factories import make_facts, make_node_facts
from tests.support import fuzzed
from torchfab.core.specs import Node
from torchfab.doctor import WARNING, Clock, Finding
from torchfab.doctor.launch_warnings import warnings
from torchfab.remote.host.quick_probe import parse_gpu_processes
from torchfab.transport.messages.launch import NodeFacts

DISK = {
    "path": "/project/.torchfab",
    "at": "/project",
    "exists": True,
    "enterable": True,
    "filesystem": "ext4",
    "free": 2**40,
    "size": 2**41,
    "free_files": 10**6,
}
NODES = [Node(rank, f"node{rank + 1}") for rank in range(4)]


def node_facts(**values: Any) -> NodeFacts:
    return make_node_facts(make_facts(1)[0], **values)


def warnings_with(
    odd: Mapping[str, Any] | None = None, torch: str = "2.9.0", ahead_s: float = 0.0
) -> tuple[Finding, ...]:
    """Return the warnings of a launch in which node2 differs."""
    usual = {"disk": DISK, "script": "abc", "holders": []}
    answers = {rank: node_facts(versions={"torch": "2.9.0"}, glance=usual) for rank in range(4)}
    answers[1] = node_facts(versions={"torch": torch}, glance={**usual, **(odd or {})})
    clocks = {rank: Clock(0.0, 0.2) for rank in range(4)}
    return warnings(NODES, answers, {**clocks, 1: Clock(ahead_s, 0.2)})


def only(found: tuple[Finding, ...]) -> Finding:
    assert len(found) == 1, found
    assert (found[0].severity, found[0].hosts) == (WARNING, ("node2",))
    assert found[0].fix
    return found[0]


def test_healthy_nodes_give_no_warning() -> None:
    assert warnings_with() == ()


def test_a_nearly_full_disk_is_a_warning() -> None:
    assert only(warnings_with({"disk": {**DISK, "free": 2**20}})).found == "1 MiB free"


def test_another_script_is_a_warning() -> None:
    assert only(warnings_with({"script": "def"})).expected == "abc"


def test_a_module_without_a_script_file_is_not_compared() -> None:
    assert warnings_with({"script": ""}) == ()


def test_another_torch_is_a_warning() -> None:
    assert only(warnings_with(torch="2.8.0")).found == "2.8.0"


def test_a_clock_is_a_warning_only_beyond_its_uncertainty() -> None:
    assert only(warnings_with(ahead_s=120.0)).found.startswith("+120000 ms")
    assert warnings_with(ahead_s=3.1) == ()


def test_processes_that_hold_gpus_are_a_warning() -> None:
    holders = [{"pid": pid, "memory_mib": 1} for pid in range(10, 16)]
    expected = "other processes use its GPUs: pid 10, pid 11, pid 12, pid 13 and 2 more"
    assert only(warnings_with({"holders": holders})).what == expected


def test_variables_of_launchers_in_a_login_environment_are_a_warning() -> None:
    expected = "its login environment has variables of launchers, which ranks do not inherit: MASTER_ADDR, RANK"
    assert only(warnings_with({"launcher_variables": ["MASTER_ADDR", "RANK"]})).what == expected


@pytest.mark.parametrize(
    ("gpus", "slots", "count", "what"),
    [
        (("7",), None, 4, "gpus=7 in hosts:2: the node has 4 GPUs"),
        (("0", "1"), 2, 1, "gpus=0,1 in hosts:2: the node has 1 GPU"),
        (("0",), None, 0, "gpus=0 in hosts:2: the node has no GPU"),
        (("0", "1"), 3, 4, "slots=3, and gpus=0,1 in hosts:2: some ranks have no device of their own"),
        (("0", "GPU-1"), 2, 1, ""),
        ((), 9, 1, ""),
    ],
)
def test_devices_that_a_node_does_not_have_are_a_warning(
    gpus: tuple[str, ...], slots: int | None, count: int, what: str
) -> None:
    nodes = [*NODES[:1], Node(1, "node2", gpus=gpus, slots=slots, origin="hosts:2")]
    found = warnings(nodes, {0: node_facts(), 1: make_node_facts(make_facts(count)[0])}, {})
    assert (only(found).what if what else found) == (what or ())


def test_an_empty_answer_gives_no_warning() -> None:
    answers = {rank: node_facts(versions={}, glance={}) for rank in range(4)}
    assert warnings(NODES, answers, {}) == ()


def test_holders_of_gpus_are_read_once_each() -> None:
    text = "4711, 1025\n4711, 1025\n12, [N/A]\n"
    assert parse_gpu_processes(text) == [{"pid": 4711, "memory_mib": 1025}, {"pid": 12, "memory_mib": None}]


def test_other_output_of_nvidia_smi_gives_no_holders() -> None:
    assert parse_gpu_processes("No devices were found\n") == []
    assert parse_gpu_processes("Failed to initialize NVML: Driver/library version mismatch\n") == []


@fuzzed(some.text())
def test_holders_in_accepts_any_text(text: str) -> None:
    assert all(isinstance(each["pid"], int) for each in parse_gpu_processes(text))

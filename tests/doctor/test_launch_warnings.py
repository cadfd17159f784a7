"""What a launch warns of: from what nodes told in phase one to folded findings that stop nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as some

from tests.support import fuzzed
from torchfab.core.specs import Node
from torchfab.doctor import WARNING, Clock, Finding
from torchfab.doctor.launch_warnings import warnings
from torchfab.remote.host.quick_probe import holders_in

DISK = {"path": "/project/.torchfab", "free": 2**40, "free_files": 10**6}
NODES = [Node(rank, f"node{rank + 1}") for rank in range(4)]


def seen(odd: Mapping[str, Any] | None = None, torch: str = "2.9.0", ahead_s: float = 0.0) -> tuple[Finding, ...]:
    """Give the warnings where node2 is odd."""
    usual = {"disk": DISK, "script": "abc", "holders": []}
    told = {rank: {"glance": usual, "versions": {"torch": "2.9.0"}} for rank in range(4)}
    told[1] = {"glance": {**usual, **(odd or {})}, "versions": {"torch": torch}}
    clocks = {rank: Clock(0.0, 0.2) for rank in range(4)}
    return warnings(NODES, told, {**clocks, 1: Clock(ahead_s, 0.2)})


def only(found: tuple[Finding, ...]) -> Finding:
    assert len(found) == 1, found
    assert (found[0].severity, found[0].hosts) == (WARNING, ("node2",))
    assert found[0].fix
    return found[0]


def test_a_launch_on_healthy_nodes_warns_of_nothing() -> None:
    assert seen() == ()


def test_a_nearly_full_disk_is_a_warning() -> None:
    assert only(seen({"disk": {**DISK, "free": 2**20}})).found == "1 MiB free"


def test_another_script_is_a_warning() -> None:
    assert only(seen({"script": "def"})).expected == "abc"


def test_a_module_has_no_file_to_compare() -> None:
    assert seen({"script": ""}) == ()


def test_another_torch_is_a_warning() -> None:
    assert only(seen(torch="2.8.0")).found == "2.8.0"


def test_a_clock_that_is_minutes_off_is_a_warning_and_one_that_may_be_right_is_none() -> None:
    assert only(seen(ahead_s=120.0)).found.startswith("+120000 ms")
    assert seen(ahead_s=3.1) == ()


def test_processes_that_hold_gpus_are_a_warning() -> None:
    holders = [{"pid": pid, "memory_mib": 1} for pid in range(10, 16)]
    words = "other processes hold its GPUs: pid 10, pid 11, pid 12, pid 13 and 2 more"
    assert only(seen({"holders": holders})).what == words


def test_a_node_that_saw_nothing_is_no_odd_one() -> None:
    told: dict[int, dict[str, Any]] = {rank: {"versions": {}, "glance": {}} for rank in range(4)}
    assert warnings(NODES, told, {}) == ()


def test_holders_of_gpus_are_read_once_each() -> None:
    text = "4711, 1025\n4711, 1025\n12, [N/A]\n"
    assert holders_in(text) == [{"pid": 4711, "memory_mib": 1025}, {"pid": 12, "memory_mib": None}]


def test_what_is_no_list_of_holders_holds_nothing() -> None:
    assert holders_in("No devices were found\n") == []
    assert holders_in("Failed to initialize NVML: Driver/library version mismatch\n") == []


@fuzzed(some.text())
def test_no_text_is_met_with_an_exception(text: str) -> None:
    assert all(isinstance(each["pid"], int) for each in holders_in(text))

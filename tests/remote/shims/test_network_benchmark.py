"""The pure part of the benchmark that runs on the nodes: the schedule of pairs, the formula, the slow limit."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchfab.network import report
from torchfab.remote.shims import network_benchmark


@given(st.integers(0, 65))
def test_schedule_has_every_pair_once_and_disjoint_rounds(count: int) -> None:
    schedule = network_benchmark.rounds(count)
    pairs = [pair for pairs in schedule for pair in pairs]
    assert sorted(pairs) == list(itertools.combinations(range(count), 2))
    for pairs in schedule:
        nodes = [node for pair in pairs for node in pair]
        assert len(nodes) == len(set(nodes))


@given(st.integers(2, 65))
def test_schedule_has_the_fewest_possible_rounds(count: int) -> None:
    schedule = network_benchmark.rounds(count)
    assert len(schedule) == count - 1 + count % 2
    assert all(len(pairs) == count // 2 for pairs in schedule)


def test_bus_factor_matches_nccl_tests() -> None:
    assert [network_benchmark.bus_factor(ranks) for ranks in (1, 2, 4, 8)] == [0, 1, 1.5, 1.75]


@pytest.mark.parametrize(
    ("gbits", "speeds", "slow"),
    [
        ([1.0, 9.4], [10, 10], False),
        ([1.0, 4.9], [10, 10], True),
        ([40.0], [100, 10], False),  # as fast as the slowest one
        ([9.4], [10, None], True),  # interface speed unknown
        ([], [10, 10], True),
    ],
)
def test_bandwidth_below_half_of_the_slowest_interface_is_slow(
    gbits: list[float], speeds: list[float | None], slow: bool
) -> None:
    assert network_benchmark.is_slow(gbits, [{"gbit": speed} for speed in speeds]) == slow


def test_sizes_range_from_1_kib_to_1_gib() -> None:
    assert network_benchmark.SIZES[0] == 1024
    assert network_benchmark.SIZES[-1] == 1 << 30


def test_interface_of_localhost_is_the_loopback() -> None:
    found = network_benchmark.interface("127.0.0.1")
    assert (found["name"], found["address"], found["gbit"]) == ("lo", "127.0.0.1", None)


def test_unresolvable_address_has_no_interface() -> None:
    assert network_benchmark.interface("nowhere.invalid") == {"name": "", "address": "", "gbit": None}


def test_benchmark_and_report_use_the_same_mark() -> None:
    assert network_benchmark.MARK == report.MARK

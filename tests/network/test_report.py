"""Slow nodes and links, and the text and JSON of a benchmark."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.json_documents import checked
from torchfab.network import report
from torchfab.network.report import BenchmarkResult, Link

HOSTS = ["node1", "node2", "node3", "node4"]


def links(count: int, *slow_nodes: int, slow_pairs: tuple[tuple[int, int], ...] = (), usual: float = 9.4) -> list[Link]:
    found = []
    for a, b in itertools.combinations(range(count), 2):
        is_slow = a in slow_nodes or b in slow_nodes or (a, b) in slow_pairs
        found.append(Link(a, b, 0.9 if is_slow else usual, 1e-4))
    return found


@pytest.mark.parametrize(("count", "slow"), [(3, {2}), (4, {0}), (4, {0, 1}), (8, {1, 6, 7}), (5, set())])
def test_slow_nodes_are_found_even_if_most_links_are_slow(count: int, slow: set[int]) -> None:
    verdict = report.find_slow(links(count, *slow))
    assert verdict is not None
    assert set(verdict.nodes) == slow
    assert verdict.links == ()
    assert verdict.typical == 9.4


def test_slow_link_between_healthy_nodes_is_found() -> None:
    verdict = report.find_slow(links(5, 4, slow_pairs=((0, 2),)))
    assert verdict is not None
    assert set(verdict.nodes) == {4}
    assert [(link.a, link.b) for link in verdict.links] == [(0, 2)]


def test_two_nodes_cannot_be_compared() -> None:
    assert report.find_slow(links(2)) is None
    assert report.find_slow([]) is None


@given(st.lists(st.floats(0.001, 1000), min_size=6, max_size=6))
def test_never_all_nodes_are_slow_and_no_link_is_listed_twice(gbits: list[float]) -> None:
    measured = [Link(*pair, gbit, 1e-4) for pair, gbit in zip(itertools.combinations(range(4), 2), gbits, strict=True)]
    verdict = report.find_slow(measured)
    assert verdict is not None
    assert len(verdict.nodes) < 4
    assert not [link for link in verdict.links if {link.a, link.b} & set(verdict.nodes)]


def test_lines_name_slow_nodes_and_links_with_the_median() -> None:
    verdict = report.find_slow(links(4, 2, slow_pairs=((0, 1),)))
    assert verdict is not None
    assert report.slow_lines(verdict, HOSTS) == [
        "node3: 0.900 Gbit/s to every other node, median is 9.40",
        "node1 - node2: 0.900 Gbit/s, median is 9.40",
    ]


def test_line_says_so_if_nothing_is_slow() -> None:
    verdict = report.find_slow(links(4))
    assert verdict is not None
    assert report.slow_lines(verdict, HOSTS)[0].startswith("no node and no link is slow: 9.40 Gbit/s")


def result_line(kind: str, **values: object) -> str:
    return report.MARK + json.dumps({"kind": kind, **values})


HELLO: dict[str, Any] = {
    "backend": "gloo",
    "ranks": 3,
    "torch": "2.13.0",
    "settings": {"NCCL_IB_HCA": "x"},
    "interfaces": [{"name": "eth0", "address": "10.0.0.1", "gbit": 10.0}] * 3,
}
SIZE = {"bytes": 1024, "count": 5, "p50_s": 1.5e-3, "max_s": 2e-3, "algbw_gbit": 0.01, "busbw_gbit": 0.0133}


def measured() -> BenchmarkResult:
    found = BenchmarkResult()
    found.feed(result_line("hello", **HELLO))
    found.feed(result_line("size", **SIZE))
    found.feed("some other line of the log")
    found.feed(result_line("round", round=1, rounds=3, pairs=[[0, 1, 9.4, 1e-4]]))
    return found


def test_text_has_sizes_interfaces_and_pairs() -> None:
    shown = report.render(measured(), HOSTS[:3])
    assert shown.splitlines()[0] == (
        "all-reduce of 3 ranks on 3 nodes, gloo, node[1-3] by eth0 (10 Gbit/s), NCCL_IB_HCA=x"
    )
    assert "1 KiB  5      1.5 ms      2 ms  0.0100        0.0133" in shown
    assert "latency: 1.5 ms for 1 KiB" in shown
    assert "1 of 3 rounds, 1 pair; the time limit was reached" in shown
    assert "node1  -      9.40   -" in shown
    assert not measured().done


def test_json_has_sizes_and_pairs() -> None:
    document = checked("network", report.as_json(measured(), HOSTS[:3]))
    assert document["hosts"] == HOSTS[:3]
    assert {name: document[name] for name in HELLO} == HELLO
    assert document["sizes"] == [SIZE]
    assert document["pairs"] == [{"hosts": ["node1", "node2"], "busbw_gbit": 9.4, "latency_s": 1e-4}]
    assert document["slow"] == {"usual_gbit": None, "nodes": [], "links": []}


@pytest.mark.parametrize(
    ("value", "text"), [(0.0941, "0.0941"), (9.4, "9.40"), (94.12, "94.1"), (941.3, "941"), (99.96, "100"), (0, "0.00")]
)
def test_bandwidth_has_three_significant_digits(value: float, text: str) -> None:
    assert report.format_gbit(value) == text

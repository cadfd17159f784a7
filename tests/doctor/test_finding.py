"""Equal findings become one, and the values of a minority are found."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from torchfab.doctor import ERROR, WARNING, Finding
from torchfab.doctor.finding import merge_findings, minorities


def test_equal_findings_are_merged_and_errors_come_first() -> None:
    hosts = ["node1", "node2", "node3"]
    low = Finding("b", WARNING, ("node3",), "low")
    every = merge_findings(
        [low, Finding("b", WARNING, ("node1",), "low"), Finding("a", ERROR, ("node2",), "bad")], hosts
    )
    assert [(each.kind, each.hosts) for each in every] == [("a", ("node2",)), ("b", ("node1", "node3"))]


@given(some.dictionaries(some.text(), some.sampled_from(["x", "y", ""])))
def test_minorities_are_all_hosts_with_another_value(values: dict[str, str]) -> None:
    usual, others = minorities(values)
    odd = {host: value for value, hosts in others.items() for host in hosts}
    assert odd == {host: value for host, value in values.items() if value != usual}
    assert all(len(hosts) <= list(values.values()).count(usual) for hosts in others.values())

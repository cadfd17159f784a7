"""Values of a node are compared with those of most nodes, clocks with their median."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from tests.doctor.factories import REQUIREMENTS, find, four_nodes, make_node, only
from torchfab.doctor import ERROR, WARNING, Clock, Finding
from torchfab.transport.messages.doctor import CodeDigest


def clock_findings(*ahead_s: float, within_s: float = 0.001) -> list[Finding]:
    return list(find([replace(make_node(rank), clock=Clock(ahead, within_s)) for rank, ahead in enumerate(ahead_s)]))


def test_clock_skew_is_measured_from_the_median() -> None:
    (finding,) = clock_findings(0.0, 2.0, 0.01)
    assert (finding.kind, finding.severity, finding.hosts) == ("clock-skew", WARNING, ("node2",))
    assert finding.found == "+2000 ms (± 1.0 ms)"


def test_a_wrong_clock_of_this_machine_alone_is_not_a_finding() -> None:
    assert clock_findings(60.0, 60.001, 60.002) == []


def test_a_clock_skew_that_breaks_torchrun_is_an_error() -> None:
    (finding,) = clock_findings(0.0, -20.0, 0.0)
    assert (finding.severity, finding.found) == (ERROR, "-20000 ms (± 1.0 ms)")


def test_an_offset_within_the_round_trip_is_not_a_finding() -> None:
    assert clock_findings(0.0, 0.9, 0.0, within_s=0.5) == []


def test_the_expected_value_is_that_of_most_nodes() -> None:
    finding = only(four_nodes(make_node(0, {"python": {"torch": "2.8.0"}})))
    assert (finding.hosts, finding.expected, finding.found) == (("node1",), "2.9.0", "2.8.0")


def test_of_two_nodes_that_differ_node_0_counts_as_right() -> None:
    finding = only([make_node(0), make_node(1, {"python": {"torch": "2.8.0"}})])
    assert (finding.hosts, finding.expected) == (("node2",), "2.9.0")


def test_differing_files_are_named() -> None:
    files = {"train.py": "1", "data.py": "2", "model.py": "3"}
    other = make_node(1, {"code": {"digest": "0"}}, {"files": {**files, "train.py": "9", "data.py": ""}})
    nodes = four_nodes(other)
    nodes[0] = make_node(0, None, {"files": files})
    assert only(nodes).what.endswith("data.py is missing, train.py")


def test_code_that_differs_from_this_machine_is_a_warning() -> None:
    finding = only([make_node(0), make_node(1)], replace(REQUIREMENTS, digest="other"))
    assert (finding.kind, finding.severity, finding.hosts) == ("code-not-ours", WARNING, ("node1", "node2"))


def test_a_missing_workdir_is_not_also_other_code() -> None:
    missing = {"places": {"workdir": {"exists": False}}, "code": None}
    odd = make_node(1, missing)
    odd = replace(odd, probe=msgspec.structs.replace(odd.parts, code=msgspec.convert({}, CodeDigest)))
    assert only(four_nodes(odd)).kind == "workdir-missing"

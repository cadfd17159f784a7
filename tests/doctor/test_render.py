"""Reports as text and JSON: equal nodes share a row, every finding has a fix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.doctor.factories import connectivity, make_node, probe, report
from tests.json_documents import checked
from torchfab.core.errors import HostError
from torchfab.doctor import render


def test_equal_nodes_share_a_row_and_differing_values_are_marked() -> None:
    nodes = [make_node(rank, {"python": {"torch": "2.8.0"}} if rank == 2 else None) for rank in range(64)]
    lines = render.render_report(report(nodes)).splitlines()
    assert len([line for line in lines if line.startswith("node[1-2,4-64] ")]) == 1
    (odd,) = (line for line in lines if line.startswith("node3 "))
    assert "2.8.0 !" in odd


def test_a_finding_has_severity_hosts_expected_value_and_fix() -> None:
    text = render.render_report(report([make_node(0), make_node(1, {"tmux": {"version": "2.9"}})]))
    assert (
        "\n\nerror: node2: tmux is too old\n  expected 3.2 or newer, found 2.9\n  fix: install a newer one there\n\n"
    ) in text
    assert text.splitlines()[-1] == "1 error, about 1 of 2 nodes (1.2 s)"


def test_healthy_nodes_are_reported_as_healthy() -> None:
    assert (
        render.render_report(report([make_node(0), make_node(1)])).splitlines()[-1]
        == "no problems found on 2 nodes (1.2 s)"
    )


def test_an_unreachable_node_has_a_row() -> None:
    lost = replace(
        make_node(1),
        probe=None,
        connectivity=None,
        clock=None,
        connect_s=None,
        error=HostError("no answer", "reboot it"),
    )
    text = render.render_report(report([make_node(0), lost]))
    assert any(line.startswith("node2  ?") for line in text.splitlines())
    assert "error: node2: no answer\n  fix: reboot it" in text


def test_colour_is_optional() -> None:
    sick = report([make_node(0), make_node(1, {"tmux": {"version": "2.9"}})])
    assert "\x1b[31merror\x1b[0m: node2" in render.render_report(sick, colour=True)
    assert "\x1b" not in render.render_report(sick)


def test_a_value_that_no_node_has_gets_no_column() -> None:
    bare = {"gpus": {"devices": 0, "driver": "", "gpus": []}, "python": {"cuda": "", "nccl": ""}}
    head = render.render_report(report([make_node(0, bare), make_node(1, bare)])).splitlines()[0]
    assert "torch" in head
    assert "driver" not in head
    assert "nccl" not in head


def test_the_json_report_shows_which_nodes_are_healthy() -> None:
    document = checked("doctor", render.as_json(report([make_node(0), make_node(1, {"tmux": {"version": "2.9"}})])))
    assert document["ok"] is False
    assert [(node["host"], node["ok"]) for node in document["nodes"]] == [("node1", True), ("node2", False)]
    (finding,) = document["findings"]
    assert (finding["kind"], finding["severity"], finding["hosts"]) == ("tmux-old", "error", ["node2"])


def includes(found: Any, expected: Any) -> bool:
    """Return whether a JSON value has all of another one, and elsewhere only what is empty."""
    if isinstance(expected, dict):
        more = [value for name, value in found.items() if name not in expected]
        return not any(more) and all(includes(found[name], value) for name, value in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(includes, found, expected))
    return bool(found == expected)


def test_the_json_report_has_what_each_node_reported() -> None:
    nodes = [make_node(0), make_node(1, None, {"connection": None, "files": {"train.py": "1"}})]
    first, second = checked("doctor", render.as_json(report(nodes)))["nodes"]
    assert includes(first["facts"], probe(0))
    assert includes(second["facts"], probe(1))
    assert second["facts"]["port"] == {}
    assert includes(first["to_node_0"], connectivity(0))
    assert "connection" not in second["to_node_0"]
    assert second["to_node_0"]["files"] == {"train.py": "1"}


def test_the_json_report_has_the_error_of_a_part_that_failed() -> None:
    failing = make_node(0, {"limits": None, "failed": {"limits": "OSError: x"}})
    lost = replace(make_node(1), probe=None, connectivity=None, error=HostError("no answer"))
    first, second = checked("doctor", render.as_json(report([failing, lost])))["nodes"]
    assert first["facts"]["failed"] == {"limits": "OSError: x"}
    assert "limits" not in first["facts"]
    assert (second["facts"], second["to_node_0"]) == ({"failed": {}}, None)

"""A report on paper: equal nodes in one row, odd ones apart, a fix beside every finding."""

from __future__ import annotations

import json
from dataclasses import replace

from tests.doctor.factories import report, seen
from torchfab.core.errors import HostError
from torchfab.doctor import render


def test_equal_nodes_are_one_row_and_the_odd_one_stands_apart_and_is_marked() -> None:
    nodes = [seen(rank, {"python": {"torch": "2.8.0"}} if rank == 2 else None) for rank in range(64)]
    lines = render.text(report(nodes)).splitlines()
    assert len([line for line in lines if line.startswith("node[1-2,4-64] ")]) == 1
    (odd,) = (line for line in lines if line.startswith("node3 "))
    assert "2.8.0 !" in odd


def test_a_finding_has_its_severity_its_hosts_what_was_expected_and_the_fix() -> None:
    text = render.text(report([seen(0), seen(1, {"tmux": {"version": "2.9"}})]))
    assert (
        "\n\nerror: node2: tmux is too old\n  expected 3.2 or newer, found 2.9\n  fix: install a newer one there\n\n"
    ) in text
    assert text.splitlines()[-1] == "1 error, about 1 of 2 nodes (1.2 s)"


def test_healthy_nodes_are_said_to_be_healthy() -> None:
    assert render.text(report([seen(0), seen(1)])).splitlines()[-1] == "nothing is wrong with 2 nodes (1.2 s)"


def test_a_node_that_does_not_answer_has_a_row() -> None:
    lost = replace(
        seen(1), probe={}, connectivity={}, clock=None, connect_s=None, error=HostError("no answer", "reboot it")
    )
    text = render.text(report([seen(0), lost]))
    assert any(line.startswith("node2  ?") for line in text.splitlines())
    assert "error: node2: no answer\n  fix: reboot it" in text


def test_colour_is_for_terminals() -> None:
    sick = report([seen(0), seen(1, {"tmux": {"version": "2.9"}})])
    assert "\x1b[31merror\x1b[0m: node2" in render.text(sick, colour=True)
    assert "\x1b" not in render.text(sick)


def test_what_no_node_has_is_no_column() -> None:
    bare = {"gpus": {"devices": 0, "driver": "", "gpus": []}, "python": {"cuda": "", "nccl": ""}}
    head = render.text(report([seen(0, bare), seen(1, bare)])).splitlines()[0]
    assert "torch" in head
    assert "driver" not in head
    assert "nccl" not in head


def test_the_report_as_json_says_which_nodes_are_healthy() -> None:
    document = json.loads(json.dumps(render.as_json(report([seen(0), seen(1, {"tmux": {"version": "2.9"}})]))))
    assert document["ok"] is False
    assert [(node["host"], node["ok"]) for node in document["nodes"]] == [("node1", True), ("node2", False)]
    (finding,) = document["findings"]
    assert (finding["kind"], finding["severity"], finding["hosts"]) == ("tmux-old", "error", ["node2"])

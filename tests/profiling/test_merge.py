"""One trace of all ranks."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.profiling.factories import calls, profiled, ranked, reduced, write_trace
from torchfab.profiling import merge


def test_ranks_with_different_clocks_come_into_one_trace(tmp_path: Path) -> None:
    first = write_trace(tmp_path / "0.json.gz", [reduced(100, 200)])
    second = write_trace(tmp_path / "1.json.gz", [reduced(180, 210)])
    found = merge.write(
        [profiled(first, calls=calls([99], 5)), profiled(second, 1, 0.01, calls=calls([179], 5))],
        tmp_path / "x.json.gz",
    )
    assert [each.rank for each in found] == [0, 1]
    with gzip.open(tmp_path / "x.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert [(each["pid"], round(each["ts"])) for each in events if each["ph"] == "X"] == [(0, 110_000), (1, 180_000)]
    names = {each["pid"]: each["args"]["name"] for each in events if each["name"] == "process_name"}
    assert names == {0: "rank 0 on node0", 1: "rank 1 on node1"}
    arrows = [each for each in events if each.get("cat") == "collective"]
    assert [(each["ph"], each["pid"], round(each["ts"])) for each in arrows] == [("s", 0, 110_000), ("f", 1, 180_000)]
    assert {each["name"] for each in arrows} == {"all_reduce no. 5 of group 0"}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["0.json.gz", "1.json.gz", "x.json.gz"]


def test_collectives_of_one_rank_and_those_that_are_cut_are_not_joined() -> None:
    found = merge.matched([ranked(0, (1, 0, 5), (2, 10, 15), (3, 20, 21)), ranked(1, (2, 9, 15), (3, 20, 30), cut=3)])
    ((key, parts),) = found.items()
    assert key == ("0", 2, "all_reduce")
    assert [rank for rank, _ in parts] == [1, 0]


def test_an_arrow_leads_from_the_first_rank_to_the_last() -> None:
    found = merge.matched([ranked(rank, (1, 10 - rank, 20)) for rank in range(3)])
    assert [(each["ph"], each["pid"]) for each in merge.arrows(found)] == [("s", 2), ("t", 1), ("f", 0)]


def test_a_trace_that_cannot_be_read_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "0.json.gz", [{"ph": "X", "dur": 1, "cat": "cpu_op", "name": "x", "ts": "soon"}])
    with pytest.raises(ValueError, match="the trace of rank 4 cannot be read"):
        merge.write([profiled(path, 4)], tmp_path / "x.json.gz")
    assert [each.name for each in tmp_path.iterdir()] == ["0.json.gz"]

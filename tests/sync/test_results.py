"""The results of a sync as text and JSON."""

from __future__ import annotations

from tests.factories import make_nodes
from tests.json_documents import checked
from torchfab.core.errors import HostError
from torchfab.sync import results
from torchfab.sync.results import SyncResult
from torchfab.sync.rsync import Stats

NODES = make_nodes("node1", "node2", "node3")


def copied(index: int, checked: int = 5) -> SyncResult:
    return SyncResult(NODES[index], False, Stats(2, 2048), checked=checked)


def test_nodes_with_equal_results_share_a_line() -> None:
    lines = results.summary_lines([copied(0), copied(1), SyncResult(NODES[2], True)], 5, 1.25)
    assert lines == [
        "node[1-2]: 2 files copied, 2 KiB",
        "node3: shares this directory; nothing to copy",
        "3 nodes hold the same 5 files (1.2 s)",
    ]


def test_differing_node_comes_last_with_its_files() -> None:
    differing = SyncResult(NODES[0], False, Stats(0, 0), checked=5, missing=1, differing=1, names=("a.py", "b.py"))
    lines = results.summary_lines([differing, copied(1)], 5, 1)
    assert lines[1] == "node1: 0 files copied, 0 B; 1 are missing and 1 differ there: a.py, b.py"
    assert "node1 does not hold the same files" in lines[2]


def test_uncompared_files_are_not_reported_as_equal() -> None:
    lines = results.summary_lines([copied(0, checked=3)], 5, 1)
    assert len(lines) == 1
    assert "only 3 could be compared" in lines[0]


def test_json_has_every_node_and_every_failure() -> None:
    document = checked("sync", results.as_json([copied(0)], {"node2": HostError("down", "see to it")}, 5))
    assert document["hosts"][0]["host"] == "node1"
    assert document["failed"] == {"node2": {"error": "down", "fix": "see to it"}}

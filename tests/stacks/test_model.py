"""Stacks as values, from the answers of nodes."""

from __future__ import annotations

from tests.stacks.factories import C10D, MAIN, NODES, TRAIN
from torchfab.stacks.model import Frame, from_answer


def test_short_file_omits_library_and_project_folders() -> None:
    shown = [Frame("f", C10D, 1).short_file, Frame("f", "/usr/lib/python3.11/threading.py", 1).short_file]
    assert [*shown, MAIN.short_file] == ["torch/distributed/distributed_c10d.py", "threading.py", "train.py"]


def test_answer_is_converted_to_values() -> None:
    thread = {"name": "MainThread", "active": True, "gil": True, "frames": [["f", TRAIN, 3, "x = 1"]]}
    report_of_rank = {"process": "agent", "rank": 0, "pid": 7, "ended": None, "code": None, "state": "R", "cpu": 1.0}
    answer = {"ranks": [{**report_of_rank, "threads": [thread]}], "spy": "sent", "rights": {}, "machine": "x86_64"}
    (found,) = from_answer(NODES[0], answer).ranks
    assert found.frames == (Frame("f", TRAIN, 3, "x = 1"),)
    assert (found.rank, found.state, found.ended) == (0, "R", False)

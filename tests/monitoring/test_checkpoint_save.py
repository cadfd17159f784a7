"""A checkpoint is whole when it has files, none is being written, and nothing has changed for a while."""

from __future__ import annotations

from typing import Any

import pytest

from torchfab.core.specs import Node
from torchfab.monitoring.checkpoint_save import SETTLED_S, CheckpointSave, SavedFile, describe
from torchfab.transport.messages.job import CheckpointAnswer, CheckpointFile

NODES = (Node(0, "node1"), Node(1, "node2"))
FIRST = CheckpointAnswer(cwd="/work", running=2, clocks={"/work/runs": 100.0}, busy=["1:7"])


def answer(*files: tuple[str, int, float, bool], running: int = 2) -> CheckpointAnswer:
    """Return an answer with these files: path within the folder, size, changed, whole."""
    changed = [
        CheckpointFile(path=f"/work/runs/{path}", root="/work/runs", size=size, changed=when, whole=whole)
        for path, size, when, whole in files
    ]
    return CheckpointAnswer(cwd="/work", running=running, step=119, files=changed)


def save() -> CheckpointSave:
    return CheckpointSave(dict.fromkeys(NODES, FIRST))


def feed(found: CheckpointSave, now_s: float, *files: tuple[str, int, float, bool]) -> None:
    found.feed({NODES[0]: answer(*files), NODES[1]: answer()}, now_s)


def test_only_hosts_with_a_folder_are_asked_again() -> None:
    found = CheckpointSave({NODES[0]: FIRST, NODES[1]: CheckpointAnswer(cwd="/work", running=2)})
    assert found.requests == {0: {"folders": [], "since": {"/work/runs": 100.0}, "busy": ["1:7"]}}
    assert (found.folders, found.ranks) == (["/work/runs"], 4)


def test_it_is_whole_when_it_has_settled() -> None:
    found = save()
    assert not found.is_whole(100.0)
    feed(found, 1.0, ("step-120.part", 5, 101.0, False))
    assert not found.is_whole(1.0 + 2 * SETTLED_S)
    feed(found, 10.0, ("step-120.pt", 9, 103.1, True))
    assert not found.is_whole(10.0)
    feed(found, 10.5, ("step-120.pt", 9, 103.1, True))
    assert not found.is_whole(10.0 + SETTLED_S / 2)
    assert found.is_whole(10.0 + SETTLED_S)
    feed(found, 12.0, ("step-120.pt", 9, 103.1, True), ("optimizer.pt", 1, 104.0, True))
    assert not found.is_whole(10.0 + SETTLED_S)


def test_a_shared_file_counts_once_and_a_nodes_own_file_for_itself() -> None:
    found, shared = save(), ("step-5.pt", 9, 101.0, True)
    found.feed({NODES[1]: answer(shared, ("rank-1.pt", 1, 102.0, True)), NODES[0]: answer(shared)}, 0.0)
    assert [(each.host, each.path) for each in found.files] == [
        ("node1", "runs/step-5.pt"),
        ("node2", "runs/rank-1.pt"),
    ]
    assert (found.running, found.logged_step) == (4, 119)


def test_ranks_that_end_are_noticed() -> None:
    found = save()
    found.feed({NODES[0]: answer(running=1), NODES[1]: answer(running=0)}, 0.0)
    assert (found.ranks, found.running) == (4, 1)


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("x/checkpoints/step-00000120.pt", 120),
        ("checkpoint-500/model.safetensors", 500),
        ("iter_0001000/mp_rank_00/model_optim_rng.pt", 1000),
        ("global_step70/zero_pp_rank_0_mp_rank_00_optim_states.pt", 70),
        ("epoch=3-step=1200.ckpt", 1200),
        ("ckpt_00012.pth", 12),
        ("last.ckpt", None),
        ("checkpoints/model.pt", None),
        ("footstep-9.pt", None),
        ("step-1234567890123.pt", None),
    ],
)
def test_the_step_is_read_from_the_path(path: str, step: int | None) -> None:
    assert SavedFile("node1", path, path, 1, 0.0, True).step == step


def files(*paths: str, **more: Any) -> list[SavedFile]:
    base = {"host": "node1", "size": 3 * 2**29, "after_s": 3.06, "whole": True, **more}
    return [SavedFile(path=path, within=path, **base) for path in paths]


@pytest.mark.parametrize(
    ("found", "logged", "text"),
    [
        (files("ckpt/step-120.pt"), None, "checkpoint of step 120 on node1: ckpt/step-120.pt, 1.5 GiB, after 3.1 s"),
        (files("ckpt/last.pt"), None, "checkpoint on node1: ckpt/last.pt, 1.5 GiB, after 3.1 s"),
        (
            files("ckpt/last.pt"),
            119,
            "checkpoint at about step 119 (the last one logged) on node1: ckpt/last.pt, 1.5 GiB, after 3.1 s",
        ),
        (
            files("out/checkpoint-10/a.bin", "out/checkpoint-10/b/c.bin"),
            9,
            "checkpoint of step 10 on node1: out/checkpoint-10/ (2 files), 3 GiB, after 3.1 s",
        ),
        (
            [*files("d/step-3/0.distcp"), *files("d/step-3/1.distcp", host="node2", after_s=5.0)],
            None,
            "checkpoint of step 3 on node[1-2]: d/step-3/ (2 files), 3 GiB, after 5.0 s",
        ),
    ],
)
def test_a_checkpoint_is_described_in_one_line(found: list[SavedFile], logged: int | None, text: str) -> None:
    assert describe(found, logged) == text

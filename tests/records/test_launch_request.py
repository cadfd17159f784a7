"""What it takes to launch a job again."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import make_job, make_nodes
from tests.hostile import environments
from torchfab.core.errors import UsageError
from torchfab.core.inventory import parse_gpus
from torchfab.core.specs import Slot
from torchfab.launch import launch
from torchfab.launchers import per_node
from torchfab.records import launch_request
from torchfab.records.launch_request import LaunchRequest

NODES = make_nodes("a", {"host": "b", "slots": 2}, {"host": "c", "gpus": ("0", "1")}, "d")
OWN = vars(per_node.Flags(nnodes="1:4", nproc_per_node="2"))


def make_asked(**job: object) -> LaunchRequest:
    made = make_job(options=per_node.options(per_node.Flags(**OWN)), **job)
    return LaunchRequest(made, OWN, NODES, (Slot(0, 0, 0), Slot(1, 2, 0)), 3, {"restarts": 2})


@given(environments())
def test_what_was_asked_for_is_read_back_whole(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> None:
    folder = tmp_path_factory.mktemp("job")
    asked = make_asked(env=env, secrets={"TOKEN": "sesame"})
    asked.save(folder)
    assert launch_request.load(folder, {"TOKEN": "sesame"}) == asked


def test_it_is_private_and_holds_no_secret(tmp_path: Path) -> None:
    make_asked(secrets={"HF_TOKEN": "sesame"}).save(tmp_path)
    path = tmp_path / launch_request.FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "HF_TOKEN" in path.read_text()
    assert "sesame" not in path.read_text()


def test_secrets_that_are_missing_here_are_named(tmp_path: Path) -> None:
    make_asked(secrets={"HF_TOKEN": "sesame", "KEY": "x"}).save(tmp_path)
    with pytest.raises(UsageError, match=r"needs HF_TOKEN in its environment"):
        launch_request.load(tmp_path, {"KEY": "y"})


def test_a_job_without_it_cannot_be_launched_again(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be launched again"):
        launch_request.load(tmp_path, {})


def test_another_attempt_is_the_same_job_under_a_new_id() -> None:
    asked = make_asked(port=5001)
    assert asked.next_job("cafe0000") == replace(asked.job, job_id="gpt2-cafe0000")
    assert asked.next_job("cafe0000", new_port=True).port == 0


# ---- which nodes


def test_the_first_nodes_run_and_the_rest_are_spares() -> None:
    assert [node.host for node in launch.choose(NODES, 2)] == ["a", "b"]
    assert [node.host for node in launch.choose(NODES, 2, {"a"})] == ["b", "c"]


def test_too_few_nodes_are_an_error_that_names_the_lemons() -> None:
    with pytest.raises(UsageError, match=r"4 nodes are wanted.* 2 that can be used; left out as lemons: a,c"):
        launch.choose(NODES, 4, {"a", "c"})


def test_nodes_and_slots_are_numbered_anew() -> None:
    nodes, slots = parse_gpus("a\nb\na\nc\nb\nc", "gpus")
    kept, ranks = launch_request.select_nodes(nodes, slots, (nodes[1], nodes[2]))
    assert [(node.rank, node.host) for node in kept] == [(0, "b"), (1, "c")]
    assert ranks == (Slot(0, 0, 0), Slot(1, 1, 0), Slot(2, 0, 1), Slot(3, 1, 1))


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=12), st.sets(st.sampled_from("abcde")))
def test_rank_0_is_on_node_0_whichever_nodes_are_left(lines: list[str], gone: set[str]) -> None:
    nodes, slots = parse_gpus("\n".join(lines), "gpus")
    wanted = [node for node in nodes if node.host not in gone]
    kept, ranks = launch_request.select_nodes(nodes, slots, wanted)
    assert [node.rank for node in kept] == list(range(len(wanted)))
    assert [slot.rank for slot in ranks] == list(range(len(ranks)))
    assert not ranks or ranks[0].node_rank == 0
    assert sorted(kept[slot.node_rank].host for slot in ranks) == sorted(host for host in lines if host not in gone)

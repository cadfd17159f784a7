"""The launch request of a job: saved, loaded, and its nodes selected."""

from __future__ import annotations

import json
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
from torchfab.launchers import per_node
from torchfab.launching import launch
from torchfab.records import launch_request
from torchfab.records.launch_request import LaunchRequest

NODES = make_nodes("a", {"host": "b", "slots": 2}, {"host": "c", "gpus": ("0", "1")}, "d")
OWN = vars(per_node.Flags(nnodes="1:4", nproc_per_node="2"))


def make_request(**job: object) -> LaunchRequest:
    made = make_job(options=per_node.options(per_node.Flags(**OWN)), **job)
    return LaunchRequest(made, OWN, NODES, (Slot(0, 0, 0), Slot(1, 2, 0)), 3, {"restarts": 2})


@given(environments())
def test_a_request_is_read_back_as_it_was_saved(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> None:
    folder = tmp_path_factory.mktemp("job")
    request = make_request(env=env, secrets={"TOKEN": "sesame"})
    request.save(folder)
    assert launch_request.load(folder, {"TOKEN": "sesame"}) == request


def test_the_file_is_private_and_holds_no_secret(tmp_path: Path) -> None:
    make_request(secrets={"HF_TOKEN": "sesame"}).save(tmp_path)
    path = tmp_path / launch_request.FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "HF_TOKEN" in path.read_text()
    assert "sesame" not in path.read_text()


def test_load_names_the_secrets_that_are_missing(tmp_path: Path) -> None:
    make_request(secrets={"HF_TOKEN": "sesame", "KEY": "x"}).save(tmp_path)
    with pytest.raises(UsageError, match=r"needs HF_TOKEN in its environment"):
        launch_request.load(tmp_path, {"KEY": "y"})


def test_load_without_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be launched again"):
        launch_request.load(tmp_path, {})


def test_a_request_of_the_version_before_is_read(tmp_path: Path) -> None:
    earlier = Path(__file__).with_name("earlier_version") / launch_request.FILE
    (tmp_path / launch_request.FILE).write_text(earlier.read_text())
    request = launch_request.load(tmp_path, {"HF_TOKEN": "sesame"})
    flags = per_node.Flags(nnodes="1:2", nproc_per_node="2")
    secrets = {"HF_TOKEN": "sesame"}
    assert request == LaunchRequest(
        job=make_job(options=per_node.options(flags), env={"A": "1"}, secrets=secrets, grace_s=120.0),
        own=vars(flags),
        nodes=make_nodes({"host": "node1", "user": "ann", "gpus": ("0", "1")}, "node2"),
        slots=(),
        count=2,
        policy={"restarts": 2},
    )
    request.save(tmp_path)  # numbers that were text become numbers; the keys stay
    saved = json.loads((tmp_path / launch_request.FILE).read_text())
    assert {**saved, "own": {}} == {**json.loads(earlier.read_text()), "own": {}}
    assert launch_request.load(tmp_path, secrets) == request


def test_a_program_is_still_one_after_it_was_saved(tmp_path: Path) -> None:
    job = make_job(script=("./tool", "a"), is_program=True, options=per_node.options(per_node.Flags()))
    request = LaunchRequest(job, vars(per_node.Flags()), make_nodes("node1"), (), 1)
    request.save(tmp_path)
    assert launch_request.load(tmp_path, {}).job.argv == ("./tool", "a")


def test_the_files_of_a_job_are_saved_and_a_job_without_them_is_as_before(tmp_path: Path) -> None:
    job = make_job(files={"a.py": "x"}, python_version="3.11", options=per_node.options(per_node.Flags()))
    LaunchRequest(job, vars(per_node.Flags()), make_nodes("node1"), (), 1).save(tmp_path)
    found = launch_request.load(tmp_path, {}).job
    assert (dict(found.files), found.python_version) == ({"a.py": "x"}, "3.11")
    make_request().save(tmp_path)
    assert not {"files", "python_version"} & set(json.loads((tmp_path / launch_request.FILE).read_text())["job"])


def test_another_attempt_is_the_same_job_under_a_new_id() -> None:
    request = make_request(port=5001)
    assert request.next_job("cafe0000") == replace(request.job, job_id="gpt2-cafe0000")
    assert request.next_job("cafe0000", new_port=True).port == 0


# ---- which nodes


def test_the_first_nodes_run_and_the_rest_are_spares() -> None:
    assert [node.host for node in launch.choose(NODES, 2)] == ["a", "b"]
    assert [node.host for node in launch.choose(NODES, 2, {"a"})] == ["b", "c"]


def test_too_few_nodes_is_an_error_that_names_the_lemons() -> None:
    with pytest.raises(UsageError, match=r"needs 4 nodes.* 2 that can be used; left out as lemons: a,c"):
        launch.choose(NODES, 4, {"a", "c"})


def test_nodes_and_slots_are_renumbered() -> None:
    nodes, slots = parse_gpus("a\nb\na\nc\nb\nc", "gpus")
    kept, ranks = launch_request.select_nodes(nodes, slots, (nodes[1], nodes[2]))
    assert [(node.rank, node.host) for node in kept] == [(0, "b"), (1, "c")]
    assert ranks == (Slot(0, 0, 0), Slot(1, 1, 0), Slot(2, 0, 1), Slot(3, 1, 1))


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=12), st.sets(st.sampled_from("abcde")))
def test_rank_0_is_on_node_0_whichever_nodes_are_left(lines: list[str], gone: set[str]) -> None:
    nodes, slots = parse_gpus("\n".join(lines), "gpus")
    selected = [node for node in nodes if node.host not in gone]
    kept, ranks = launch_request.select_nodes(nodes, slots, selected)
    assert [node.rank for node in kept] == list(range(len(selected)))
    assert [slot.rank for slot in ranks] == list(range(len(ranks)))
    assert not ranks or ranks[0].node_rank == 0
    assert sorted(kept[slot.node_rank].host for slot in ranks) == sorted(host for host in lines if host not in gone)

"""Where the ranks of a job run, and the plan around the processes of a launcher."""

from __future__ import annotations

from typing import Any

import pytest

from tests.factories import JOB_ID, folder, make_facts, make_job, make_nodes
from torchfab.core.errors import UsageError
from torchfab.core.specs import Facts, Job, NodePlan, Plan, Process
from torchfab.launchers.rank_layout import (
    Layout,
    assumed_facts,
    lay_out,
    make_plan,
    master_address,
    process_environment,
)


def layout_of(job: Job, note: str = "") -> Layout:
    return lay_out(job, make_nodes("node1", "node2"), make_facts(4, 0), [4, 2], note)


def test_a_layout_has_the_ranks_and_the_rendezvous() -> None:
    found = layout_of(make_job())
    assert (found.counts, found.world_size, found.master, found.port) == ((4, 2), 6, "node1", 29400)
    assert (found.nodes, found.facts) == (make_nodes("node1", "node2"), make_facts(4, 0))


def test_the_port_of_the_job_is_used_if_node_0_holds_none() -> None:
    facts = (Facts(folder(0)), Facts(folder(1)))
    assert lay_out(make_job(port=5001), make_nodes("a", "b"), facts, [1, 1]).port == 5001


def test_launcher_variables_win_over_the_jobs_and_markers_over_both() -> None:
    job = make_job(env={"A": "job", "B": "job", "TORCHFAB_JOB_ID": "forged"})
    (_, second) = layout_of(job).placements
    assert process_environment(second, B="own", TORCHFAB_NODE_RANK="7") == {
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "8",
        "A": "job",
        "B": "own",
        "TORCHFAB_JOB_ID": JOB_ID,
        "TORCHFAB_NODE_RANK": "1",
    }


def test_a_plan_has_the_processes_of_each_node() -> None:
    first, second = Process("agent", ("a",)), Process("agent", ("b",))
    assert make_plan(layout_of(make_job(), "uneven"), [(first,), [second]], {"versions": "torch 2.9"}) == Plan(
        job=make_job(),
        nodes=tuple(
            NodePlan(node, folder(node.rank), (process,))
            for node, process in zip(make_nodes("node1", "node2"), (first, second), strict=True)
        ),
        world_size=6,
        defaults={
            "job": "gpt2",
            "nodes": "2 (node[1-2])",
            "ranks": "6 (uneven)",
            "versions": "torch 2.9",
            "master": "node1:29400 (a free port of node1)",
            "workdir": "/project",
            "python": "/venv/bin/python",
        },
        min_nodes=2,
    )


def test_the_launch_prints_its_values_in_a_fixed_order() -> None:
    plan = make_plan(layout_of(make_job(port=29400)), [(), ()], {"versions": "torch 2.9"}, min_nodes=1, has_head=True)
    assert list(plan.defaults) == ["job", "nodes", "ranks", "versions", "master", "workdir", "python"]
    assert (plan.defaults["ranks"], plan.defaults["master"]) == ("6", "node1:29400")
    assert (plan.min_nodes, plan.has_head) == (1, True)


@pytest.mark.parametrize(
    ("values", "first", "expected"),
    [
        ({}, "a", "a"),
        ({}, {"host": "a", "address": "10.0.0.1"}, "10.0.0.1"),
        ({}, {"host": "localhost", "address": "10.0.0.1"}, "10.0.0.1"),
        ({"master_addr": "10.9.9.9"}, "localhost", "10.9.9.9"),
    ],
)
def test_the_master_address_is_given_or_that_of_node_0(values: dict[str, Any], first: Any, expected: str) -> None:
    assert master_address(make_job(**values), make_nodes(first, "b")) == expected


def test_localhost_is_a_master_only_for_itself() -> None:
    assert master_address(make_job(), make_nodes("localhost")) == "localhost"
    with pytest.raises(UsageError, match="hosts:1: node 0 is localhost, and b cannot reach it"):
        master_address(make_job(), make_nodes("localhost", "b"))


def test_facts_are_assumed_from_port_folder_and_ranks() -> None:
    nodes = make_nodes("a", "b")
    assert assumed_facts(make_job(port=5001), nodes, [4, 2]) == (
        Facts(folder(0), gpus=4, port=5001),
        Facts(folder(1), gpus=2),
    )
    assert assumed_facts(make_job(), nodes, [4, 2]) is None
    assert assumed_facts(make_job(port=5001, node_dir="~/x"), nodes, [4, 2]) is None
    assert assumed_facts(make_job(port=5001), nodes, [4, 0]) is None

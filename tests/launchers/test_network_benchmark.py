"""The job of `fab network`: whole plans as values."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.factories import JOB_ID, folder, make_facts, make_job, make_nodes
from torchfab.core.errors import UsageError
from torchfab.core.specs import Job, NodePlan, Plan, Process
from torchfab.launchers import network_benchmark, shims


def job_with(backend: str = "auto", seconds: float = 20.0, **values: Any) -> Job:
    options = network_benchmark.options(network_benchmark.Flags(seconds, False, backend))
    return make_job(launcher="network", script=("-", "fab network"), options=options, **values)


def plan_of(job: Job, *gpus: int) -> Plan:
    nodes = make_nodes(*(f"node{index + 1}" for index in range(len(gpus))))
    return network_benchmark.plan(job, nodes, (), make_facts(*gpus))


def probe(node: int, rank: int, local: int, here: int, world: int, backend: str, nodes: list[list[int]]) -> Process:
    request = {"seconds": 20.0, "pairs": False, "backend": backend, "patience_s": 90.0, "nodes": nodes}
    argv = ("/venv/bin/python", f"{folder(node)}/rank-{rank}/network_benchmark.py", json.dumps(request))
    env = {
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1" if backend == "nccl" else "16",
        "NCCL_DEBUG": "INFO",
        "RANK": str(rank),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(here),
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "29400",
        "TORCHFAB_JOB_ID": JOB_ID,
        "TORCHFAB_NODE_RANK": str(node),
    }
    return Process(
        f"rank-{rank}", argv, env, rank=rank, files={"network_benchmark.py": shims.source_of("network_benchmark")}
    )


def test_nodes_without_gpus_have_one_rank_each_and_use_gloo() -> None:
    plan = plan_of(job_with(env={"NCCL_DEBUG": "INFO"}), 0, 0)
    nodes = make_nodes("node1", "node2")
    assert plan.nodes == tuple(
        NodePlan(nodes[rank], folder(rank), (probe(rank, rank, 0, 1, 2, "gloo", [[0], [1]]),)) for rank in (0, 1)
    )
    assert (plan.world_size, plan.min_nodes) == (2, 2)


def test_every_gpu_has_one_rank_and_nccl_is_used() -> None:
    plan = plan_of(job_with(env={"NCCL_DEBUG": "INFO"}), 1, 2)
    assert plan.nodes[1].processes == (
        probe(1, 1, 0, 2, 3, "nccl", [[0], [1, 2]]),
        probe(1, 2, 1, 2, 3, "nccl", [[0], [1, 2]]),
    )


def test_one_node_without_a_gpu_makes_all_use_gloo() -> None:
    assert plan_of(job_with(), 8, 0).world_size == 2


@pytest.mark.parametrize(
    ("job", "gpus", "message"),
    [(job_with("nccl"), (1, 0), "node2 has none"), (job_with(), (0,), "at least two ranks")],
)
def test_a_network_that_cannot_be_measured_is_an_error(job: Job, gpus: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_of(job, *gpus)


@pytest.mark.parametrize(
    "flags", [network_benchmark.Flags(0.5, False, "auto"), network_benchmark.Flags(20, False, "mpi")]
)
def test_invalid_flags_are_an_error(flags: network_benchmark.Flags) -> None:
    with pytest.raises(UsageError, match=r"--(seconds|backend)"):
        network_benchmark.options(flags)


def test_the_script_is_sent_with_the_plan() -> None:
    assert job_with().script_path is None
    assert job_with().module is None

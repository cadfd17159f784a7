"""launch-per-gpu: whole plans as values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.factories import JOB_ID, folder, make_facts, make_job
from tests.hostile import HOSTILE
from torchfab.core import dry_run
from torchfab.core.errors import UsageError
from torchfab.core.inventory import parse_gpus
from torchfab.core.specs import Facts, Job, NodePlan, Plan, Process, Requirements
from torchfab.launchers import per_gpu


def job_with(**values: Any) -> Job:
    return make_job(launcher="per-gpu", options=per_gpu.options(per_gpu.Flags()), **values)


def plan_of(gpus: str, job: Job, *counts: int, **more: Any) -> Plan:
    nodes, slots = parse_gpus(gpus, "gpus")
    return per_gpu.plan(job, nodes, slots, make_facts(*counts, **more))


def rank_process(node: int, rank: int, local: int, here: int, world: int = 5, **env: str) -> Process:
    """Return the process of one rank on one of two nodes with GPUs."""
    return Process(
        name=f"rank-{rank}",
        argv=("/venv/bin/python", "train.py", "--lr", "3e-4"),
        env={
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "TORCHFAB_JOB_ID": JOB_ID,
            "TORCHFAB_NODE_RANK": str(node),
            "RANK": str(rank),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(here),
            "MASTER_ADDR": "b",
            "MASTER_PORT": "29400",
            "TORCHELASTIC_ERROR_FILE": f"{folder(node)}/rank-{rank}/errors/error.json",
            **env,
        },
        rank=rank,
        folders=("errors",),
    )


def test_the_plan_of_five_lines_on_two_hosts() -> None:
    job, text = job_with(), "b\na\nb\na\nb\n"
    nodes, _ = parse_gpus(text, "gpus")
    ranks = {0: [(0, 0), (2, 1), (4, 2)], 1: [(1, 0), (3, 1)]}
    assert plan_of(text, job, 8, 8) == Plan(
        job=job,
        nodes=tuple(
            NodePlan(
                nodes[node],
                folder(node),
                tuple(rank_process(node, rank, local, len(mine)) for rank, local in mine),
            )
            for node, mine in ranks.items()
        ),
        world_size=5,
        defaults={
            "job": "gpt2",
            "nodes": "2 (a,b)",
            "ranks": "5",
            "master": "b:29400 (a free port of b)",
            "workdir": "/project",
            "python": "/venv/bin/python",
        },
        min_nodes=2,
    )


def test_named_devices_are_visible_in_the_order_of_local_ranks() -> None:
    plan = plan_of("b gpus=5,2\na gpus=0\nb gpus=7\n", job_with(), 8, 8)
    env = [
        [(each.env["RANK"], each.env["LOCAL_RANK"], each.env["CUDA_VISIBLE_DEVICES"]) for each in node.processes]
        for node in plan.nodes
    ]
    assert env == [[("0", "0", "5,2,7"), ("1", "1", "5,2,7"), ("3", "2", "5,2,7")], [("2", "0", "0")]]


def test_ranks_on_a_node_without_gpus_share_its_cores() -> None:
    plan = plan_of("a\na\nb\n", job_with(), 0, 0, cpus=8)
    assert [[each.env["OMP_NUM_THREADS"] for each in node.processes] for node in plan.nodes] == [["4", "4"], ["8"]]


def test_512_ranks_on_64_hosts_are_64_nodes_with_8_ranks() -> None:
    plan = plan_of("\n".join(["n[01-64]"] * 8), job_with(), *[8] * 64)
    assert [len(node.processes) for node in plan.nodes] == [8] * 64
    ranks = sorted(int(each.env["RANK"]) for node in plan.nodes for each in node.processes)
    assert ranks == list(range(512))


@pytest.mark.parametrize(
    ("gpus", "values", "expected"),
    [
        ("[fd00::1]\nb", {}, "fd00::1"),
        ("ann@a:2222 address=10.0.0.1\nb", {}, "10.0.0.1"),
        ("localhost\nlocalhost", {}, "localhost"),
        ("localhost\nb", {"master_addr": "10.0.0.5"}, "10.0.0.5"),
        ("b\nlocalhost", {}, "b"),
    ],
)
def test_the_master_is_the_host_of_the_first_line(gpus: str, values: dict[str, Any], expected: str) -> None:
    nodes, slots = parse_gpus(gpus, "gpus")
    plan = per_gpu.plan(job_with(**values), nodes, slots, make_facts(*[1] * len(nodes)))
    found = {each.env["MASTER_ADDR"] for node in plan.nodes for each in node.processes}
    assert found == {expected}


def test_localhost_first_and_another_host_needs_an_address() -> None:
    with pytest.raises(UsageError) as caught:
        plan_of("localhost\nb", job_with(), 1, 1)
    assert str(caught.value) == (
        "gpus:1: node 0 is localhost, and b cannot reach it by that name\n"
        "  fix: give this machine's address with --master-addr, or with address= in the hosts file"
    )


def test_user_variables_override_defaults_but_not_the_ranks() -> None:
    env = {"OMP_NUM_THREADS": "5", "RANK": "9", "NCCL_DEBUG": "INFO"}
    plan = plan_of("b", job_with(env=env, secrets={"HF_TOKEN": "hunter2"}), 1)
    expected = rank_process(0, 0, 0, 1, 1, OMP_NUM_THREADS="5", NCCL_DEBUG="INFO")
    assert plan.nodes[0].processes == (expected,)
    assert env == {"OMP_NUM_THREADS": "5", "RANK": "9", "NCCL_DEBUG": "INFO"}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in HOSTILE.items()])
def test_any_text_passes_unchanged_into_argv_and_env(text: str) -> None:
    (process,) = plan_of("a", job_with(script=("x.py", text), env={"A": text}), 1).nodes[0].processes
    assert process.argv == ("/venv/bin/python", "x.py", text)
    assert process.env["A"] == text


def test_requirements_are_torch_and_a_port() -> None:
    assert per_gpu.requirements(job_with()) == Requirements(modules=("torch",), port=True)


def test_facts_come_from_the_flags_with_a_port_and_a_folder() -> None:
    nodes, _ = parse_gpus("a\nb\na", "gpus")
    assert per_gpu.facts_from_flags(job_with(port=5001), nodes) == (Facts(folder(0), 1, port=5001), Facts(folder(1), 1))
    assert per_gpu.facts_from_flags(job_with(), nodes) is None
    assert per_gpu.facts_from_flags(job_with(port=5001, node_dir="~/x"), nodes) is None


def test_the_dry_run_of_three_ranks_matches_the_golden_file(golden: Callable[[str, str], None]) -> None:
    job = job_with(port=5001, secrets={"HF_TOKEN": "hunter2"}, script=("train.py", "two\nlines"))
    nodes, slots = parse_gpus("node1 gpus=0,3\nnode2", "gpus")
    facts = per_gpu.facts_from_flags(job, nodes)
    assert facts is not None
    text = dry_run.render_dry_run(
        per_gpu.plan(job, nodes, slots, facts), lambda each: ("ssh", "--", each.node.host, "bash", "-s")
    )
    assert "hunter2" not in text
    golden("dry-run-per-gpu.sh", text)

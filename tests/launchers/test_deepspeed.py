"""launch-deepspeed: whole plans as values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.factories import JOB_ID, folder, make_facts, make_job, make_nodes
from tests.hostile import HOSTILE
from tests.launchers.test_mpi import without_shims
from torchfab.core import dry_run
from torchfab.core.errors import UsageError
from torchfab.core.flag_values import parse
from torchfab.core.specs import Job, NodePlan, Plan, Process, Requirements
from torchfab.launchers import deepspeed, shims

PYTHON = "/venv/bin/python"
DEEPSPEED = (PYTHON, "-m", "deepspeed.launcher.runner")
HOSTS = "node1 slots=8\nnode2 slots=8\n"


def job_with(values: Mapping[str, Any] | None = None, **flags: Any) -> Job:
    return make_job(launcher="deepspeed", options=deepspeed.options(parse(deepspeed.Flags, flags)), **(values or {}))


def environment(rank: int, **more: str) -> dict[str, str]:
    return {
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        **more,
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "29400",
        "LOCAL_WORLD_SIZE": "8",
        "TORCHFAB_JOB_ID": JOB_ID,
        "TORCHFAB_NODE_RANK": str(rank),
    }


def after(argv: tuple[str, ...], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_the_plan_of_two_nodes() -> None:
    job, nodes = job_with(), make_nodes("node1", "node2")

    def agent(rank: int) -> Process:
        here = f"{folder(rank)}/agent"
        argv = (
            *(*DEEPSPEED, "--no_ssh", "--node_rank", str(rank), "--hostfile", f"{here}/hostfile"),
            *("--master_addr", "node1", "--master_port", "29400", "--enable_each_rank_log", f"{here}/logs"),
            *("--no_local_rank", "train.py", "--lr", "3e-4"),
        )
        return Process(
            "agent",
            argv,
            environment(rank),
            rank_logs=r"logs/\d+_rank(?P<rank>\d+)\.log",
            folders=("logs",),
            files={"hostfile": HOSTS},
        )

    assert deepspeed.plan(job, nodes, (), make_facts(8, 8)) == Plan(
        job=job,
        nodes=tuple(NodePlan(node, folder(node.rank), (agent(node.rank),)) for node in nodes),
        world_size=16,
        defaults={
            "job": "gpt2",
            "nodes": "2 (node[1-2])",
            "ranks": "16 (8 per node)",
            "master": "node1:29400 (a free port of node1)",
            "workdir": "/project",
            "python": "/venv/bin/python",
        },
        min_nodes=2,
    )


def test_the_plan_of_two_nodes_from_the_head() -> None:
    job = job_with({"env": {"A": "b", "PYTHONPATH": "/lib"}, "secrets": {"A_TOKEN": "x"}}, from_head=True)
    nodes, here = make_nodes("node1", "node2"), f"{folder(0)}/head"
    plan = deepspeed.plan(job, nodes, (), make_facts(8, 8))

    def relay(rank: int) -> Process:
        there = f"{folder(rank)}/agent"
        own = {"A": "b", "PYTHONPATH": "/lib"}
        return Process(
            "agent",
            (PYTHON, "-I", "-S", f"{there}/relay.py", "await"),
            {**environment(rank, **own), "TORCHFAB_FOLDER": there},
            rank_logs=r"logs/\d+_rank(?P<rank>\d+)\.log",
            folders=("logs", "errors"),
            files={
                "relay.py": shims.source_of("relay"),
                "rank.py": shims.source_of("rank"),
                "script.json": json.dumps([PYTHON, "train.py", "--lr", "3e-4"]) + "\n",
                "bin/rank": f'#!/bin/sh\nexec {PYTHON} -I -S {there}/rank.py --script "$@"\n',
            },
            path=(f"{there}/bin",),
        )

    first, second = plan.nodes
    head = first.processes[1]
    assert (first.processes[0], second.processes) == (relay(0), (relay(1),))
    assert head.argv == (
        *(PYTHON, "-I", "-S", f"{here}/head.py"),
        *(*DEEPSPEED, "--launcher", "pdsh", "--force_multi", "--no_ssh_check", "--hostfile", f"{here}/hostfile"),
        *("--master_addr", "node1", "--master_port", "29400", "--enable_each_rank_log", '"$TORCHFAB_FOLDER/logs"'),
        *("--no_local_rank", "--no_python", '"$TORCHFAB_FOLDER/bin/rank"'),
    )
    # deepspeed puts variables of some names onto the command lines of the other nodes: it has few, and no secret.
    assert (head.secrets, head.env) == (
        False,
        {
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": "/lib",
            "DS_ENV_FILE": f"{here}/deepspeed_env",
            "TORCHFAB_JOB_ID": JOB_ID,
            "TORCHFAB_NODE_RANK": "0",
        },
    )
    assert (head.files["hostfile"], head.files["deepspeed_env"]) == (HOSTS, f"TORCHFAB_JOB_ID={JOB_ID}\n")
    reach = json.loads(head.files["nodes.json"])
    assert (reach["fail_fast"], bool(reach["nodes"]["node1"]["gate"]), reach["nodes"]["node1"]["ssh"]) == (
        True,
        True,
        [],
    )
    assert (plan.has_head, plan.world_size) == (True, 16)


def test_devices_of_the_hosts_file_are_passed_to_deepspeed_only() -> None:
    nodes = make_nodes({"host": "node1", "gpus": ("2", "3")}, {"host": "node2", "slots": 1})
    plan = deepspeed.plan(job_with(), nodes, (), make_facts(8, 8))
    argv = plan.nodes[1].processes[0].argv
    assert after(argv, "--include") == "node1:2,3@node2:0"
    # It must know of as many devices as the highest index needs, and would overwrite CUDA_VISIBLE_DEVICES.
    assert plan.nodes[0].processes[0].files["hostfile"] == "node1 slots=4\nnode2 slots=1\n"
    assert not any("CUDA_VISIBLE_DEVICES" in each.processes[0].env for each in plan.nodes)
    assert plan.world_size == 3


def test_a_device_without_an_index_is_an_error() -> None:
    with pytest.raises(UsageError, match="hosts:1: deepspeed knows devices by their index, got gpus=GPU-8a"):
        deepspeed.plan(job_with(), make_nodes({"host": "a", "gpus": ("GPU-8a",)}), (), make_facts(1))


def test_a_node_without_gpus_uses_the_cpu_accelerator() -> None:
    plan = deepspeed.plan(job_with(), make_nodes("a", "b"), (), make_facts(0, 0))
    assert [each.processes[0].env["DS_ACCELERATOR"] for each in plan.nodes] == ["cpu", "cpu"]
    own = deepspeed.plan(job_with({"env": {"DS_ACCELERATOR": "hpu"}}), make_nodes("a"), (), make_facts(0))
    assert own.nodes[0].processes[0].env["DS_ACCELERATOR"] == "hpu"


def test_a_module_and_more_arguments_for_deepspeed() -> None:
    job = job_with(
        {"script": ("-m", "pkg.train", "x")}, local_rank=True, deepspeed_args="--log_level error --bind_core_list '0 1'"
    )
    (process,) = deepspeed.plan(job, make_nodes("a"), (), make_facts(1)).nodes[0].processes
    more = ("--log_level", "error", "--bind_core_list", "0 1", "--module", "pkg.train", "x")
    assert process.argv[-7:] == more
    assert "--no_local_rank" not in process.argv


def test_from_the_head_the_script_is_in_a_file() -> None:
    script = ("train.py", *HOSTILE.values())
    job = job_with({"script": script}, from_head=True)
    plan = deepspeed.plan(job, make_nodes("a", "b"), (), make_facts(1, 1))
    relays = [each.processes[0] for each in plan.nodes]
    assert [json.loads(relay.files["script.json"]) for relay in relays] == [[PYTHON, *script]] * 2
    assert "train.py" not in plan.nodes[0].processes[1].argv


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in HOSTILE.items()])
def test_any_text_passes_unchanged_into_argv_and_env(text: str) -> None:
    job = job_with({"script": ("x.py", text, text), "env": {"A": text}})
    (process,) = deepspeed.plan(job, make_nodes("a"), (), make_facts(1)).nodes[0].processes
    assert (process.argv[-3:], process.env["A"]) == (("x.py", text, text), text)


def test_requirements_name_deepspeed_and_pdsh_on_the_head() -> None:
    assert deepspeed.requirements(job_with()) == Requirements(("torch", "deepspeed"), port=True)
    (pdsh,) = deepspeed.requirements(job_with(from_head=True)).programs
    assert (pdsh.names, pdsh.on_head_only, pdsh.install) == (("pdsh",), True, "sudo apt-get install -y pdsh")


def test_deepspeed_args_are_checked_by_deepspeeds_own_parser() -> None:
    requirements = deepspeed.requirements(job_with(deepspeed_args="--log_level error"))
    assert requirements.parser[2:] == ("--log_level", "error", "train.py")
    assert "parse_args" in requirements.parser[1]


def test_deepspeed_args_with_unbalanced_quotes_are_an_error() -> None:
    with pytest.raises(UsageError, match="--deepspeed-args 'a \"b': No closing quotation"):
        deepspeed.options(deepspeed.Flags(deepspeed_args='a "b'))


@pytest.mark.parametrize("from_head", [False, True], ids=["nodes", "head"])
def test_the_dry_run_of_two_nodes_matches_the_golden_file(golden: Callable[[str, str], None], from_head: bool) -> None:
    values = {"port": 5001, "env": {"NCCL_DEBUG": "INFO"}, "script": ("train.py", "--name", "it's $5")}
    job = job_with(values, nproc_per_node="2", from_head=from_head)
    nodes = make_nodes("node1", "node2")
    facts = deepspeed.facts_from_flags(job, nodes)
    assert facts is not None
    plan = deepspeed.plan(job, nodes, (), facts)
    text = dry_run.render_dry_run(plan, lambda each: ("ssh", "--", each.node.host, "bash", "-s"), ["a note"])
    golden(f"dry-run-deepspeed-{'head' if from_head else 'nodes'}.sh", without_shims(text))

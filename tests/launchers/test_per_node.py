"""launch-per-node: whole plans as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from string import Template
from typing import Any

import pytest

from tests.factories import JOB_ID, folder, make_facts, make_job, make_nodes
from tests.hostile import HOSTILE
from torchfab.core import dry_run
from torchfab.core.errors import UsageError
from torchfab.core.flag_values import parse
from torchfab.core.specs import Facts, Job, NodePlan, Plan, Process, Requirements
from torchfab.launchers import escape_for_torchrun, per_node, torchrun_agent, torchrun_rank


def job_with(values: Mapping[str, Any] | None = None, **flags: str) -> Job:
    return make_job(options=per_node.options(parse(per_node.Flags, flags)), **(values or {}))


def argvs(plan: Plan) -> list[tuple[str, ...]]:
    return [each.processes[0].argv for each in plan.nodes]


def after(argv: tuple[str, ...], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def rank_command(rank: int, *script: str) -> tuple[str, ...]:
    """Return what a node's torchrun runs for each rank."""
    code = f"exec(open('{folder(rank)}/agent/become_rank.py').read())"
    return ("--no-python", "/venv/bin/python", "-I", "-S", f"-c{code}", "-u", *script)


def agent(rank: int, argv: tuple[str, ...], **env: str) -> Process:
    """Return the agent of a node; `env` is what differs from a node with GPUs."""
    return Process(
        name="agent",
        argv=argv,
        env={
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            **env,
            "TORCHELASTIC_ERROR_FILE": f"{folder(rank)}/agent/errors/error.json",
            "TORCHFAB_JOB_ID": JOB_ID,
            "TORCHFAB_NODE_RANK": str(rank),
        },
        rank_logs=per_node.RANK_LOGS,
        folders=("logs", "errors"),
        files={torchrun_agent.FILE: torchrun_agent.CODE, torchrun_rank.FILE: torchrun_rank.CODE},
    )


def test_the_plan_of_two_nodes_with_gpus() -> None:
    job, nodes = job_with(), make_nodes("node1", "node2")

    def argv(rank: int) -> tuple[str, ...]:
        return (
            *("/venv/bin/python", f"{folder(rank)}/agent/torchrun_agent.py"),
            *("--rdzv-id", JOB_ID),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "node1:29400"),
            *("--rdzv-conf", f"is_host={1 - rank},join_timeout=600,read_timeout=600"),
            *("--local-addr", f"node{rank + 1}"),
            *("--nnodes", "2", "--nproc-per-node", "8", "--max-restarts", "0"),
            *("--redirects", "3", "--log-dir", f"{folder(rank)}/agent/logs"),
            *rank_command(rank, "train.py", "--lr", "3e-4"),
        )

    assert per_node.plan(job, nodes, (), make_facts(8, 8)) == Plan(
        job=job,
        nodes=tuple(NodePlan(node, folder(node.rank), (agent(node.rank, argv(node.rank)),)) for node in nodes),
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


def test_the_static_backend_passes_master_and_node_rank() -> None:
    job = job_with({"port": 5001}, rdzv_backend="static", nproc_per_node="4", max_restarts="3")
    plan = per_node.plan(job, make_nodes("node1", "node2"), (), make_facts(8, 8, port=5001))
    assert argvs(plan)[1] == (
        *("/venv/bin/python", f"{folder(1)}/agent/torchrun_agent.py"),
        *("--rdzv-id", JOB_ID),
        *("--rdzv-backend", "static", "--master-addr", "node1", "--master-port", "5001", "--node-rank", "1"),
        *("--nnodes", "2", "--nproc-per-node", "4", "--max-restarts", "3"),
        *("--redirects", "3", "--log-dir", f"{folder(1)}/agent/logs"),
        *rank_command(1, "train.py", "--lr", "3e-4"),
    )
    assert plan.defaults["master"] == "node1:5001"


def test_an_elastic_job_has_bounds_and_survives_with_fewer_nodes() -> None:
    plan = per_node.plan(job_with(nnodes="2:4", max_restarts="5"), make_nodes("a", "b", "c"), (), make_facts(1, 1, 1))
    assert [after(argv, "--nnodes") for argv in argvs(plan)] == ["2:4"] * 3
    assert (plan.world_size, plan.min_nodes) == (3, 2)


@pytest.mark.parametrize(("nnodes", "said"), [("2", "2"), ("2:2", "2"), ("", "2")])
def test_equal_bounds_become_one_number(nnodes: str, said: str) -> None:
    plan = per_node.plan(job_with(nnodes=nnodes), make_nodes("a", "b"), (), make_facts(1, 1))
    assert after(argvs(plan)[0], "--nnodes") == said


@pytest.mark.parametrize(
    ("nnodes", "message"),
    [
        ("3", "--nnodes 3 does not fit the 2 hosts\n  fix: change --nnodes or the hosts"),
        ("3:4", "--nnodes 3:4 does not fit the 2 hosts\n  fix: change --nnodes or the hosts"),
        ("1", "--nnodes 1 does not fit the 2 hosts\n  fix: change --nnodes or the hosts"),
    ],
)
def test_the_hosts_must_fit_nnodes(nnodes: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        per_node.plan(job_with(nnodes=nnodes), make_nodes("a", "b"), (), make_facts(1, 1))
    assert str(caught.value) == message


def test_the_static_backend_is_never_elastic() -> None:
    with pytest.raises(UsageError, match="--rdzv-backend static cannot be elastic"):
        per_node.plan(job_with(nnodes="1:2", rdzv_backend="static"), make_nodes("a", "b"), (), make_facts(1, 1))


def test_nodes_run_one_rank_per_gpu_even_if_uneven() -> None:
    plan = per_node.plan(job_with(), make_nodes("a", "b", "c", "d"), (), make_facts(8, 4, 0, 8, cpus=16))
    assert [after(argv, "--nproc-per-node") for argv in argvs(plan)] == ["8", "4", "2", "8"]
    assert [each.processes[0].env["OMP_NUM_THREADS"] for each in plan.nodes] == ["1", "1", "8", "1"]
    assert (plan.world_size, plan.defaults["ranks"]) == (
        22,
        "22 (uneven: 1 node with 2, 1 node with 4, 2 nodes with 8)",
    )


def test_slots_and_devices_of_the_hosts_file_set_the_ranks() -> None:
    nodes = make_nodes({"host": "a", "slots": 3}, {"host": "b", "gpus": ("2", "5")}, "c")
    counted = per_node.plan(job_with(), nodes, (), make_facts(8, 8, 8))
    assert [after(argv, "--nproc-per-node") for argv in argvs(counted)] == ["3", "2", "8"]
    assert [each.processes[0].env.get("CUDA_VISIBLE_DEVICES") for each in counted.nodes] == [None, "2,5", None]
    fixed = per_node.plan(job_with(nproc_per_node="1"), nodes, (), make_facts(8, 8, 8))
    assert [after(argv, "--nproc-per-node") for argv in argvs(fixed)] == ["1", "1", "1"]


def test_nproc_per_node_gpu_requires_gpus() -> None:
    with pytest.raises(UsageError) as caught:
        per_node.plan(job_with(nproc_per_node="gpu"), make_nodes("a", "b"), (), make_facts(2, 0))
    assert str(caught.value) == "--nproc-per-node gpu: b has no GPU\n  fix: use auto, or a number"


def test_the_rendezvous_address_may_differ_from_the_ssh_name() -> None:
    nodes = make_nodes(
        {"host": "gw", "port": 2201, "address": "10.0.0.1"}, {"host": "gw", "port": 2202, "address": "10.0.0.2"}
    )
    found = argvs(per_node.plan(job_with(), nodes, (), make_facts(1, 1)))
    assert [after(argv, "--rdzv-endpoint") for argv in found] == ["10.0.0.1:29400"] * 2
    assert [after(argv, "--local-addr") for argv in found] == ["10.0.0.1", "10.0.0.2"]


def test_an_ipv6_master_is_in_brackets_only_before_a_port() -> None:
    nodes = make_nodes("fd00::1", "fd00::2")
    c10d = argvs(per_node.plan(job_with(), nodes, (), make_facts(1, 1)))
    assert [after(argv, "--rdzv-endpoint") for argv in c10d] == ["[fd00::1]:29400"] * 2
    assert [after(argv, "--local-addr") for argv in c10d] == ["fd00::1", "fd00::2"]
    static = argvs(per_node.plan(job_with(rdzv_backend="static"), nodes, (), make_facts(1, 1)))
    assert after(static[1], "--master-addr") == "fd00::1"


def test_master_addr_is_used_on_all_nodes() -> None:
    job = job_with({"master_addr": "10.9.9.9"})
    found = argvs(per_node.plan(job, make_nodes("localhost", "b"), (), make_facts(1, 1)))
    assert [after(argv, "--rdzv-endpoint") for argv in found] == ["10.9.9.9:29400"] * 2
    assert [after(argv, "--local-addr") for argv in found] == ["10.9.9.9", "b"]


def test_localhost_alone_is_its_own_master() -> None:
    (argv,) = argvs(per_node.plan(job_with(), make_nodes("localhost"), (), make_facts(0)))
    assert (after(argv, "--rdzv-endpoint"), after(argv, "--local-addr")) == ("localhost:29400", "localhost")


def test_localhost_as_node_0_with_other_nodes_needs_an_address() -> None:
    with pytest.raises(UsageError) as caught:
        per_node.plan(job_with(), make_nodes("localhost", "b"), (), make_facts(1, 1))
    assert str(caught.value) == (
        "hosts:1: node 0 is localhost, and b cannot reach it by that name\n"
        "  fix: give this machine's address with --master-addr, or with address= in the hosts file"
    )


def test_localhost_as_a_later_node_needs_an_address_with_c10d() -> None:
    with pytest.raises(UsageError) as caught:
        per_node.plan(job_with(), make_nodes("b", "localhost"), (), make_facts(1, 1))
    assert str(caught.value) == (
        "hosts:2: the other nodes cannot reach localhost by that name\n"
        "  fix: give this machine's address with address= in the hosts file, or use --rdzv-backend static"
    )


def test_localhost_as_a_later_node_works_with_address_or_static() -> None:
    addressed = make_nodes("b", {"host": "localhost", "address": "10.0.0.9"})
    assert after(argvs(per_node.plan(job_with(), addressed, (), make_facts(1, 1)))[1], "--local-addr") == "10.0.0.9"
    static = per_node.plan(job_with(rdzv_backend="static"), make_nodes("b", "localhost"), (), make_facts(1, 1))
    assert after(argvs(static)[1], "--node-rank") == "1"


def test_user_variables_override_defaults_but_not_the_marks() -> None:
    env = {"OMP_NUM_THREADS": "5", "TORCHFAB_JOB_ID": "forged", "NCCL_DEBUG": "INFO"}
    job = job_with({"env": env, "secrets": {"HF_TOKEN": "hunter2"}})
    plan = per_node.plan(job, make_nodes("a"), (), make_facts(1))
    found = plan.nodes[0].processes[0].env
    assert found == agent(0, (), OMP_NUM_THREADS="5", NCCL_DEBUG="INFO").env
    assert env == {"OMP_NUM_THREADS": "5", "TORCHFAB_JOB_ID": "forged", "NCCL_DEBUG": "INFO"}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in HOSTILE.items()])
def test_any_text_passes_unchanged_into_argv_and_env(text: str) -> None:
    job = job_with({"script": ("x.py", text, text), "env": {"A": text}, "workdir": f"/{text}"})
    process = per_node.plan(job, make_nodes("a"), (), make_facts(1)).nodes[0].processes[0]
    assert process.argv[-3:] == ("x.py", text, text)
    assert process.env["A"] == text


def test_the_same_input_gives_the_same_plan() -> None:
    job, nodes, facts = job_with(), make_nodes("a", "b"), make_facts(2, 2)
    assert per_node.plan(job, nodes, (), facts) == per_node.plan(job, nodes, (), facts)


# ---- flags


def test_options_are_the_flags_with_numbers_parsed() -> None:
    flags = per_node.Flags("4", "1:2", 7, "static", 30)
    assert per_node.options(flags) == {
        "nproc_per_node": "4",
        "nnodes": (1, 2),
        "max_restarts": 7,
        "rdzv_backend": "static",
        "rdzv_timeout_s": 30,
    }


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        *(
            ("nproc_per_node", value, f"--nproc-per-node must be auto, gpu or a number from 1 to 1024, got {value!r}")
            for value in ("0", "-1", "two", "", "1.5", "٣", "1025", "9" * 5000)
        ),
        ("rdzv_backend", "etcd", "--rdzv-backend is c10d or static, got 'etcd'"),
        ("max_restarts", "-1", "--max-restarts must be a number of at least 0, got '-1'"),
        ("rdzv_timeout", "0", "--rdzv-timeout must be a number of at least 1, got '0'"),
        ("nnodes", "0", "--nnodes must be N or MIN:MAX, each a number of at least 1, got '0'"),
        ("nnodes", "1:x", "--nnodes must be N or MIN:MAX, each a number of at least 1, got 'x'"),
        ("nnodes", "1:", "--nnodes must be N or MIN:MAX, each a number of at least 1, got ''"),
        ("nnodes", "4:2", "--nnodes must be N or MIN:MAX, got '4:2': 2 is less than 4"),
    ],
)
def test_an_invalid_flag_is_an_error_that_lists_valid_values(flag: str, value: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        per_node.options(parse(per_node.Flags, {flag: value}))
    assert str(caught.value) == message


@pytest.mark.parametrize("flag", ["nproc_per_node", "max_restarts", "rdzv_timeout", "nnodes"])
@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in HOSTILE.items() if text])
def test_a_hostile_flag_is_refused(flag: str, text: str) -> None:
    with pytest.raises(UsageError, match="got "):
        per_node.options(parse(per_node.Flags, {flag: text}))


# ---- what phase one is for


def test_requirements_are_torch_and_a_port() -> None:
    assert per_node.requirements(job_with()) == Requirements(modules=("torch",), port=True, peers=True)
    assert per_node.requirements(job_with(rdzv_backend="static")) == Requirements(
        modules=("torch",), port=True, peers=False
    )


def test_facts_come_from_the_flags_if_they_suffice() -> None:
    nodes = make_nodes("a", "b")
    expected = (Facts(folder(0), gpus=4, port=5001), Facts(folder(1), gpus=4))
    assert per_node.facts_from_flags(job_with({"port": 5001}, nproc_per_node="4"), nodes) == expected


def test_facts_come_from_slots_on_every_line() -> None:
    nodes = make_nodes({"host": "a", "slots": 2}, {"host": "b", "gpus": ("0",)})
    found = per_node.facts_from_flags(job_with({"port": 5001}), nodes)
    assert found == (Facts(folder(0), gpus=2, port=5001), Facts(folder(1), gpus=1))


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        ({}, {"nproc_per_node": "4"}),
        ({"port": 5001}, {}),
        ({"port": 5001}, {"nproc_per_node": "gpu"}),
        ({"port": 5001, "node_dir": "~/.torchfab"}, {"nproc_per_node": "4"}),
    ],
)
def test_facts_are_unknown_if_the_flags_do_not_suffice(values: dict[str, Any], flags: dict[str, str]) -> None:
    assert per_node.facts_from_flags(job_with(values, **flags), make_nodes("a")) is None


def test_the_dry_run_of_two_nodes_matches_the_golden_file(golden: Callable[[str, str], None]) -> None:
    job = job_with(
        {"port": 5001, "env": {"NCCL_DEBUG": "INFO"}, "script": ("train.py", "--name", "it's $5")}, nproc_per_node="2"
    )
    nodes = make_nodes("node1", "node2")
    facts = per_node.facts_from_flags(job, nodes)
    assert facts is not None
    plan = per_node.plan(job, nodes, (), facts)
    golden(
        "dry-run-per-node.sh",
        dry_run.render_dry_run(plan, lambda each: ("ssh", "--", each.node.host, "bash", "-s"), ["a note"]),
    )


@pytest.mark.parametrize("text", ["$$", "$(a)$$", "${local_rank}", "$local_rank", "$$local_rank", "$5 $HOME", "$$$"])
def test_torchrun_passes_every_argument_on_unchanged(text: str) -> None:
    (word,) = escape_for_torchrun([text])
    assert Template(word).safe_substitute(local_rank="0") == text

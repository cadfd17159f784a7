"""launch-mpi: whole plans as values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.factories import JOB_ID, folder, make_facts, make_job, make_nodes
from tests.hostile import HOSTILE
from torchfab.core import dry_run
from torchfab.core.errors import UsageError
from torchfab.core.flag_values import parse
from torchfab.core.specs import Facts, Job, NodePlan, Plan, Process, Requirements
from torchfab.launchers import mpi, shims

PYTHON = "/venv/bin/python"
RANKS = ("sh", "-c", mpi.RANK_COMMAND, PYTHON, PYTHON, "train.py", "--lr", "3e-4")
BOTH = {"mpirun.openmpi": "4.1.4", "mpiexec.hydra": "4.0.2", "torch": "2.13.0"}


def job_with(values: Mapping[str, Any] | None = None, **flags: str) -> Job:
    return make_job(launcher="mpi", options=mpi.options(parse(mpi.Flags, flags)), **(values or {}))


def facts_with(*gpus: int, versions: Mapping[str, str] | None = None) -> tuple[Facts, ...]:
    return tuple(replace(fact, versions=BOTH if versions is None else versions) for fact in make_facts(*gpus))


def environment(rank: int, process: str, **more: str) -> dict[str, str]:
    return {
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        **more,
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "29400",
        "LOCAL_WORLD_SIZE": "2",
        "TORCHFAB_JOB_ID": JOB_ID,
        "TORCHFAB_NODE_RANK": str(rank),
        "TORCHFAB_FOLDER": f"{folder(rank)}/{process}",
    }


def relay(rank: int, **more: str) -> Process:
    there = f"{folder(rank)}/agent"
    return Process(
        "agent",
        (PYTHON, "-I", "-S", f"{there}/relay.py", "await"),
        environment(rank, "agent", **more),
        rank_logs=r"logs/rank-(?P<rank>\d+)\.log",
        folders=("logs", "errors"),
        files={"relay.py": shims.source_of("relay"), "rank.py": shims.source_of("rank")},
        path=(f"{there}/bin",),
    )


def head(argv: tuple[str, ...], hostfile: str, **more: str) -> Process:
    head_folder = f"{folder(0)}/head"
    reach = {
        "node1": {"ssh": [], "gate": []},
        "node2": {
            "ssh": [
                *("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15"),
                *("--", "node2"),
            ],
            "gate": [
                *("env", f"TORCHFAB_JOB_ID={JOB_ID}", "TORCHFAB_NODE_RANK=1"),
                *(PYTHON, "-I", "-S", f"{folder(1)}/agent/relay.py", "deliver"),
            ],
        },
    }
    return Process(
        "head",
        argv,
        environment(0, "head", **more),
        rank_logs=r"logs/rank-(?P<rank>\d+)\.log",
        folders=("logs", "errors"),
        files={
            "hostfile": hostfile,
            "rank.py": shims.source_of("rank"),
            "head.py": shims.source_of("head"),
            "rsh.py": shims.source_of("rsh"),
            "nodes.json": json.dumps({"nodes": reach, "fail_fast": False}, indent=1) + "\n",
            "bin/ssh": f'#!/bin/sh\nexec {PYTHON} -I -S {head_folder}/rsh.py "$@"\n',
        },
        path=(f"{head_folder}/bin",),
    )


HEAD = (PYTHON, "-I", "-S", f"{folder(0)}/head/head.py")


def openmpi(*more: str, ranks: int = 4) -> tuple[str, ...]:
    return (
        *HEAD,
        *("mpirun.openmpi", "--allow-run-as-root", "--hostfile", f"{folder(0)}/head/hostfile"),
        *("-np", str(ranks), "--map-by", "slot", "--bind-to", "none"),
        *("--mca", "plm_rsh_agent", "ssh", "--mca", "plm_rsh_no_tree_spawn", "1"),
        *("--mca", "orte_leave_session_attached", "1"),
        *more,
        *RANKS,
    )


def mpich(*more: str, ranks: int = 4) -> tuple[str, ...]:
    head_folder = f"{folder(0)}/head"
    return (
        *HEAD,
        *("mpiexec.hydra", "-launcher", "ssh", "-launcher-exec", f"{head_folder}/bin/ssh"),
        *(more or ("-localhost", "node1")),
        *("-f", f"{head_folder}/hostfile", "-n", str(ranks), "-genvnone", *RANKS),
    )


def test_the_plan_of_open_mpi_on_two_nodes() -> None:
    job, nodes = job_with(), make_nodes("node1", "node2")
    assert mpi.plan(job, nodes, (), facts_with(2, 2)) == Plan(
        job=job,
        nodes=(
            NodePlan(nodes[0], folder(0), (head(openmpi(), "node1 slots=2\nnode2 slots=2\n"),)),
            NodePlan(nodes[1], folder(1), (relay(1),)),
        ),
        world_size=4,
        defaults={
            "job": "gpt2",
            "nodes": "2 (node[1-2])",
            "ranks": "4 (2 per node)",
            "versions": "mpirun.openmpi 4.1.4, torch 2.13.0",
            "master": "node1:29400 (a free port of node1)",
            "workdir": "/project",
            "python": "/venv/bin/python",
        },
        min_nodes=2,
        has_head=True,
    )


def test_the_plan_of_mpich_on_two_nodes() -> None:
    nodes = make_nodes("node1", "node2")
    plan = mpi.plan(job_with(flavour="mpich"), nodes, (), facts_with(2, 2))
    assert plan.nodes == (
        NodePlan(nodes[0], folder(0), (head(mpich(), "node1:2\nnode2:2\n"),)),
        NodePlan(nodes[1], folder(1), (relay(1),)),
    )


def test_the_relays_start_before_the_head() -> None:
    plan = mpi.plan(job_with(), make_nodes("a", "b", "c"), (), facts_with(1, 1, 1))
    assert [[each.node.host for each in wave] for wave in plan.start_order] == [["b", "c"], ["a"]]


def test_the_interface_is_passed_to_mpi_gloo_and_nccl() -> None:
    nodes = make_nodes("node1", "node2")
    names = {"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": "eth1"}
    first = mpi.plan(job_with(interface="eth1"), nodes, (), facts_with(2, 2)).nodes[0].processes[0]
    mca = ("--mca", "btl_tcp_if_include", "eth1", "--mca", "oob_tcp_if_include", "eth1")
    assert first.argv == openmpi(*mca)
    assert {name: first.env[name] for name in names} == names
    second = mpi.plan(job_with(interface="eth1", flavour="mpich"), nodes, (), facts_with(2, 2)).nodes[0].processes[0]
    assert second.argv == mpich("-iface", "eth1")


def test_open_mpi_gets_names_of_variables_but_no_values() -> None:
    job = job_with({"env": {"NCCL_DEBUG": "INFO"}, "secrets": {"HF_TOKEN": "hunter2"}})
    plan = mpi.plan(job, make_nodes("node1", "node2"), (), facts_with(2, 2))
    assert plan.nodes[0].processes[0].argv == openmpi("-x", "HF_TOKEN", "-x", "NCCL_DEBUG")
    assert plan.nodes[1].processes[0] == relay(1, NCCL_DEBUG="INFO")


def test_nodes_have_their_own_devices_and_number_of_ranks() -> None:
    nodes = make_nodes({"host": "node1", "gpus": ("2", "3")}, {"host": "node2", "slots": 1})
    plan = mpi.plan(job_with(), nodes, (), facts_with(8, 8))
    first, second = (each.processes[0] for each in plan.nodes)
    assert first.files["hostfile"] == "node1 slots=2\nnode2 slots=1\n"
    assert (first.env["CUDA_VISIBLE_DEVICES"], "CUDA_VISIBLE_DEVICES" in second.env) == ("2,3", False)
    assert (first.env["LOCAL_WORLD_SIZE"], second.env["LOCAL_WORLD_SIZE"], plan.world_size) == ("2", "1", 3)


def test_ssh_options_come_from_the_hosts_file_and_fabs_flags() -> None:
    nodes = make_nodes("a", {"host": "b", "user": "u", "port": 2222, "address": "10.0.0.2"})
    job = job_with({"ssh_options": ("-F", "/etc/lab", "-i", "/k")})
    reach = json.loads(mpi.plan(job, nodes, (), facts_with(1, 1)).nodes[0].processes[0].files["nodes.json"])["nodes"]
    assert reach["10.0.0.2"]["ssh"][7:] == [
        *("-F", "/etc/lab", "-i", "/k", "-o", "HostName=10.0.0.2", "-p", "2222", "-l", "u", "--", "b"),
    ]


@pytest.mark.parametrize(
    ("versions", "flavour", "program"),
    [
        (BOTH, "auto", "mpirun.openmpi"),
        ({"mpiexec.hydra": "4.0.2"}, "auto", "mpiexec.hydra"),
        ({"orterun": "4.1.4"}, "openmpi", "orterun"),
        (BOTH, "mpich", "mpiexec.hydra"),
        ({}, "openmpi", "mpirun.openmpi"),  # a dry run that did not connect to any node
    ],
)
def test_the_program_is_the_first_installed_one_of_the_flavour(
    versions: Mapping[str, str], flavour: str, program: str
) -> None:
    plan = mpi.plan(job_with(flavour=flavour), make_nodes("a", "b"), (), facts_with(1, 1, versions=versions))
    assert plan.nodes[0].processes[0].argv[4] == program


def test_nodes_with_different_mpis_are_an_error() -> None:
    first, second = make_facts(1, 1)
    facts = replace(first, versions={"mpirun.openmpi": "4"}), replace(second, versions={"mpiexec.hydra": "4"})
    with pytest.raises(UsageError, match="the nodes have no MPI in common"):
        mpi.plan(job_with(), make_nodes("a", "b"), (), facts)


def test_versions_that_differ_are_shown() -> None:
    first, second = facts_with(1, 1)
    facts = first, replace(second, versions={**BOTH, "torch": "2.12.0"})
    plan = mpi.plan(job_with(), make_nodes("a", "b"), (), facts)
    assert plan.defaults["versions"] == "mpirun.openmpi 4.1.4, torch 2.12.0 and 2.13.0 (the nodes differ)"


def test_a_launch_as_root_shows_the_advice_of_open_mpi() -> None:
    facts = tuple(replace(fact, is_root=True) for fact in facts_with(1))
    assert "an ordinary user is safer" in mpi.plan(job_with(), make_nodes("a"), (), facts).defaults["root"]
    assert "root" not in mpi.plan(job_with(flavour="mpich"), make_nodes("a"), (), facts).defaults


def test_two_nodes_with_the_same_name_are_an_error() -> None:
    nodes = make_nodes({"host": "a", "port": 22}, {"host": "b"}, {"host": "b", "port": 23})
    with pytest.raises(UsageError, match="this launcher identifies a node by its address alone, and two nodes have b"):
        mpi.plan(job_with(), nodes, (), facts_with(1, 1, 1))


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in HOSTILE.items()])
@pytest.mark.parametrize("flavour", ["openmpi", "mpich"])
def test_any_text_passes_unchanged_into_argv_and_env(text: str, flavour: str) -> None:
    job = job_with({"script": ("x.py", text, text), "env": {"A": text}}, flavour=flavour)
    plan = mpi.plan(job, make_nodes("a", "b"), (), facts_with(1, 1))
    assert plan.nodes[0].processes[0].argv[-3:] == ("x.py", text, text)
    assert [each.processes[0].env["A"] for each in plan.nodes] == [text, text]


def test_requirements_name_the_program_and_its_install_command() -> None:
    assert mpi.requirements(job_with(flavour="mpich")) == Requirements(("torch",), port=True, programs=(mpi.MPICH,))
    assert mpi.requirements(job_with()).programs[0].names == ("mpirun.openmpi", "orterun", "mpiexec.hydra")
    assert [each.install for each in (mpi.OPENMPI, mpi.MPICH)] == [
        "sudo apt-get install -y openmpi-bin",
        "sudo apt-get install -y mpich",
    ]


def test_an_invalid_flag_is_an_error_that_lists_valid_values() -> None:
    with pytest.raises(UsageError, match="--flavour is auto, openmpi or mpich, got 'intel'"):
        mpi.options(mpi.Flags(flavour="intel"))
    with pytest.raises(UsageError, match="--nproc-per-node must be auto, gpu or a number from 1 to 1024, got '0'"):
        mpi.options(mpi.Flags(nproc_per_node="0"))


def test_facts_come_from_the_flags_if_they_suffice() -> None:
    nodes = make_nodes("node1", "node2")
    assert mpi.facts_from_flags(job_with({"port": 5001}, nproc_per_node="2"), nodes) is None  # which MPI?
    assert mpi.facts_from_flags(job_with({"port": 5001}, nproc_per_node="2", flavour="mpich"), nodes) is not None


@pytest.mark.parametrize("flavour", ["openmpi", "mpich"])
def test_the_dry_run_of_two_nodes_matches_the_golden_file(golden: Callable[[str, str], None], flavour: str) -> None:
    values = {"port": 5001, "env": {"NCCL_DEBUG": "INFO"}, "script": ("train.py", "--name", "it's $5")}
    job = job_with(values, nproc_per_node="2", flavour=flavour)
    nodes = make_nodes("node1", "node2")
    facts = mpi.facts_from_flags(job, nodes)
    assert facts is not None
    plan = mpi.plan(job, nodes, (), facts)
    text = dry_run.render_dry_run(plan, lambda each: ("ssh", "--", each.node.host, "bash", "-s"), ["a note"])
    golden(f"dry-run-mpi-{flavour}.sh", without_shims(text))


def without_shims(text: str) -> str:
    """Leave out the sources of the shims: they have their own tests."""
    for name in ("relay", "head", "rsh", "rank", "colossalai_run"):
        text = text.replace(shims.source_of(name).rstrip("\n"), f"(torchfab/remote/shims/{name}.py)")
    return text

"""Nodes with an interpreter, a working directory and variables of their own, for every launcher over a hosts file."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest

from tests.factories import make_facts, make_job, make_nodes
from torchfab.core import dry_run
from torchfab.core.errors import UsageError
from torchfab.core.inventory import parse_gpus
from torchfab.core.specs import Node, Plan
from torchfab.launchers import colossalai, deepspeed, mpi, per_gpu, per_node
from torchfab.runtimes import tmux

OWN = {"python": "/opt/py", "workdir": "/data", "node_dir": "/data/.torchfab", "env": (("A", "own"),)}
NODES = make_nodes("node1", {"host": "node2", **OWN})
VERSIONS = {"mpirun.openmpi": "4.1.4", "torch": "2.13.0"}


def plan_of(launcher: ModuleType, nodes: tuple[Node, ...], **flags: bool) -> Plan:
    options = launcher.options(launcher.Flags(**flags))
    job = make_job(launcher=launcher.NAME, options=options, env={"A": "all", "B": "all"})
    facts = [replace(fact, versions=VERSIONS) for fact in make_facts(1, 1)]
    _, slots = parse_gpus("\n".join(node.host for node in nodes), "gpus")
    plan: Plan = launcher.plan(job, nodes, slots, facts)
    return plan


@pytest.mark.parametrize("launcher", [per_node, per_gpu, deepspeed])
def test_a_node_uses_its_own_interpreter_and_variables(launcher: ModuleType) -> None:
    plan = plan_of(launcher, NODES)
    (usual,), (own,) = (each.processes for each in plan.nodes)
    assert (usual.argv[0], usual.env["A"], usual.env["B"]) == ("/venv/bin/python", "all", "all")
    assert (own.argv[0], own.env["A"], own.env["B"]) == ("/opt/py", "own", "all")
    assert plan.defaults["python"] == "/venv/bin/python; node2: /opt/py"
    assert plan.defaults["workdir"] == "/project; node2: /data"


def test_a_node_starts_in_its_own_working_directory() -> None:
    plan = plan_of(per_node, NODES)
    cwds = [tmux.start_request(plan, each, 30.0).processes[0].cwd for each in plan.nodes]
    assert cwds == ["/project", "/data"]
    shell = dry_run.render_dry_run(plan, lambda each: ("ssh", each.node.host))
    assert [line for line in shell.splitlines() if line.startswith("cd ")] == [
        "cd /project || exit",
        "cd /data || exit",
    ]


def test_labels_stand_beside_the_node_in_a_dry_run() -> None:
    nodes = (NODES[0], replace(NODES[1], labels=(("type", "gpu"),)))
    shell = dry_run.render_dry_run(plan_of(per_node, nodes), lambda each: ("ssh", each.node.host))
    assert "# node 1: node2 type=gpu\n" in shell


@pytest.mark.parametrize(
    ("launcher", "flags"),
    [(mpi, {}), (colossalai, {}), (deepspeed, {"from_head": True})],
    ids=["mpi", "colossal", "ds"],
)
@pytest.mark.parametrize("key", ["python", "workdir"])
def test_a_head_refuses_what_differs_between_its_nodes(launcher: ModuleType, flags: dict[str, bool], key: str) -> None:
    nodes = make_nodes("node1", {"host": "node2", key: "/own"})
    with pytest.raises(
        UsageError, match=f"^hosts:2: launch-{launcher.NAME} starts all ranks from node1, with one {key}"
    ):
        plan_of(launcher, nodes, **flags)


@pytest.mark.parametrize(
    ("launcher", "flags"),
    [(mpi, {}), (colossalai, {}), (deepspeed, {"from_head": True})],
    ids=["mpi", "colossal", "ds"],
)
def test_a_head_takes_what_is_alike_and_variables_of_a_node(launcher: ModuleType, flags: dict[str, bool]) -> None:
    nodes = make_nodes({"host": "node1", **OWN, "env": ()}, {"host": "node2", **OWN})
    plan = plan_of(launcher, nodes, **flags)
    relay = plan.nodes[1].processes[0]
    assert (relay.argv[0], relay.env["A"], relay.env["B"]) == ("/opt/py", "own", "all")


def test_mpirun_does_not_overwrite_a_variable_of_one_node() -> None:
    nodes = make_nodes("node1", {"host": "node2", "env": (("A", "own"),)})
    argv = plan_of(mpi, nodes).nodes[0].processes[0].argv
    assert [argv[index + 1] for index, word in enumerate(argv) if word == "-x"] == ["B"]


def test_a_node_keeps_its_own_values_in_a_record() -> None:
    node = replace(NODES[1], labels=(("type", "gpu"),))
    assert Node.from_json(node.as_json()) == node
    assert "python" not in NODES[0].as_json()

"""python once per line of `gpus`. To change what a launch does, change `rank_env` and the argv in `_process`.

The tutorial's one-liner was `cat -n gpus | xargs -n2 bash -c 'ssh $1 tmux new-session -d -e RANK=$(($0 - 1)) ... python
train_llm.py'`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchfab.core import environment
from torchfab.core.specs import Facts, Job, Node, NodePlan, Plan, Process, Requirements, Slot
from torchfab.launchers import assumed_facts, master_address, resolved_defaults

NAME = "per-gpu"


@dataclass(frozen=True)
class Flags:
    """launch-per-gpu has no flags of its own."""


def options(flags: Flags) -> Mapping[str, Any]:
    """Return the checked flags."""
    return {}


def requirements(job: Job) -> Requirements:
    """Return what every node must have."""
    return Requirements(modules=("torch",), port=True)


def facts_from_flags(job: Job, nodes: Sequence[Node]) -> tuple[Facts, ...] | None:
    """Return the facts that the flags give, if they give all: here, the port; else None."""
    known = job.port and not job.node_dir.startswith("~")
    return assumed_facts(job, nodes, [1] * len(nodes)) if known else None


def plan(job: Job, nodes: Sequence[Node], slots: Sequence[Slot], facts: Sequence[Facts]) -> Plan:
    """Return what runs where: one python process per slot, each with its rank in the environment.

    Parameters
    ----------
    job : Job
        What was asked for.
    nodes, facts : sequences of equal length
        The nodes and what they told, in the order of node ranks.
    slots : sequence of Slot
        One per process, in the order of ranks.
    """
    # The master is the host of the first line, which is node 0: nodes are numbered as they first appear.
    master, port = master_address(job, nodes), facts[0].port or job.port
    node_plans = []
    for node, fact in zip(nodes, facts, strict=True):
        mine = [slot for slot in slots if slot.node_rank == node.rank]
        common = {**environment.threads(len(mine), fact.gpus, fact.cpus), **environment.visible_devices(node.gpus)}
        env = {"PYTHONUNBUFFERED": "1", **common, **job.env, **environment.marks(job.job_id, node.rank)}
        processes = [
            _process(job, fact, slot, {**env, **rank_env(slot, len(slots), len(mine), master, port)}) for slot in mine
        ]
        node_plans.append(NodePlan(node, fact.folder, tuple(processes)))
    return Plan(
        job,
        tuple(node_plans),
        len(slots),
        resolved_defaults(job, nodes, master, port, ranks=str(len(slots))),
        len(nodes),
    )


def rank_env(slot: Slot, world_size: int, local_world_size: int, master: str, port: int) -> dict[str, str]:
    """Return the environment that makes a process the rank of its slot."""
    return environment.rank_variables(slot.rank, slot.local_rank, world_size, local_world_size, master, port)


def _process(job: Job, facts: Facts, slot: Slot, env: dict[str, str]) -> Process:
    name = f"rank-{slot.rank}"
    env["TORCHELASTIC_ERROR_FILE"] = f"{facts.folder}/{name}/errors/error.json"
    return Process(name, (job.python, *job.script), env, rank=slot.rank, folders=("errors",))

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
    """Check the flags: there are none.

    Parameters
    ----------
    flags : Flags
        Empty.

    Returns
    -------
    Mapping
        Empty.
    """
    return {}


def requirements(job: Job) -> Requirements:
    """List what every node must have.

    Parameters
    ----------
    job : Job
        The job.

    Returns
    -------
    Requirements
    """
    return Requirements(modules=("torch",), port=True)


def facts_from_flags(job: Job, nodes: Sequence[Node]) -> tuple[Facts, ...] | None:
    """Return the facts if the flags determine all of them: here only the port.

    Parameters
    ----------
    job : Job
        The job.
    nodes : sequence of Node
        The nodes, by rank.

    Returns
    -------
    tuple of Facts or None
        None: the nodes must be asked.
    """
    known = job.port and not job.node_dir.startswith("~")
    return assumed_facts(job, nodes, [1] * len(nodes)) if known else None


def plan(job: Job, nodes: Sequence[Node], slots: Sequence[Slot], facts: Sequence[Facts]) -> Plan:
    """Plan the launch: one python process per slot, with its rank in the environment.

    Parameters
    ----------
    job : Job
        The job.
    nodes, facts : sequences of equal length
        The nodes and their facts, by node rank.
    slots : sequence of Slot
        One per process, by rank.

    Returns
    -------
    Plan
    """
    # The master is the host of the first line, which is node 0: nodes are numbered in the order of their first lines.
    master, port = master_address(job, nodes), facts[0].port or job.port
    node_plans = []
    for node, fact in zip(nodes, facts, strict=True):
        here = job.on(node)
        mine = [slot for slot in slots if slot.node_rank == node.rank]
        common = {**environment.omp_threads(len(mine), fact.gpus, fact.cpus), **environment.visible_devices(node.gpus)}
        env = {"PYTHONUNBUFFERED": "1", **common, **here.env, **environment.job_markers(job.job_id, node.rank)}
        processes = [
            _process(here, fact, slot, {**env, **rank_env(slot, len(slots), len(mine), master, port)}) for slot in mine
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
    """Return the variables of torch.distributed for one process.

    Parameters
    ----------
    slot : Slot
        The slot of the process.
    world_size, local_world_size : int
        Number of ranks of the job and of the node.
    master : str
        Address of the rendezvous.
    port : int
        Port of the rendezvous.

    Returns
    -------
    dict of str to str
    """
    return environment.rank_variables(slot.rank, slot.local_rank, world_size, local_world_size, master, port)


def _process(job: Job, facts: Facts, slot: Slot, env: dict[str, str]) -> Process:
    name = f"rank-{slot.rank}"
    env["TORCHELASTIC_ERROR_FILE"] = f"{facts.folder}/{name}/errors/error.json"
    return Process(name, (job.python, *job.script), env, rank=slot.rank, folders=("errors",))

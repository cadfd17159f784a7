"""python once per line of `gpus`. To change a launch, change `rank_env` and the argv in `_process`.

The tutorial's one-liner was `cat -n gpus | xargs -n2 bash -c 'ssh $1 tmux new-session -d -e RANK=$(($0 - 1)) ... python
train_llm.py'`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchfab.core import environment
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Facts, Job, Node, Plan, Process, Requirements, Slot
from torchfab.launchers.rank_layout import Layout, Placement, assumed_facts, lay_out, make_plan, process_environment

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
        None: the nodes must be queried.
    """
    return assumed_facts(job, nodes, [1] * len(nodes))


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
    slots_by_node = [[slot for slot in slots if slot.node_rank == node.rank] for node in nodes]
    layout = lay_out(job, nodes, facts, [len(mine) for mine in slots_by_node])
    processes = [
        [_process(layout, placement, slot) for slot in mine]
        for placement, mine in zip(layout.placements, slots_by_node, strict=True)
    ]
    return make_plan(layout, processes)


def rank_env(layout: Layout, placement: Placement, slot: Slot) -> dict[str, str]:
    """Return the variables of torch.distributed for one process.

    Parameters
    ----------
    layout : Layout
        Where the ranks run.
    placement : Placement
        The node of the process.
    slot : Slot
        The slot of the process.

    Returns
    -------
    dict of str to str
    """
    return environment.rank_variables(
        slot.rank, slot.local_rank, layout.world_size, placement.ranks, layout.master, layout.port
    )


def _process(layout: Layout, placement: Placement, slot: Slot) -> Process:
    job, name = placement.job, f"rank-{slot.rank}"
    env = {
        **process_environment(placement),
        **rank_env(layout, placement, slot),
        "TORCHELASTIC_ERROR_FILE": f"{placement.facts.folder}/{name}/errors/error.json",
    }
    return Process(name, job.argv, env, rank=slot.rank, folders=("errors",))

"""The job of `fab network`: one rank per GPU, or per node without GPUs, which measure the network between them.

The script that runs belongs to torchfab and is sent with the plan: it need not be installed on the nodes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchfab.core import environment
from torchfab.core.errors import UsageError
from torchfab.core.specs import Facts, Job, Node, NodePlan, Plan, Process, Requirements, Slot
from torchfab.launchers import master_address, resolved_defaults, shims

NAME = "network"
BACKENDS = ("auto", "nccl", "gloo")
SCRIPT = "network_benchmark.py"


@dataclass(frozen=True)
class Flags:
    """The options of the measurement.

    Parameters
    ----------
    seconds : float
        How long to measure.
    pairs : bool
        Always measure pairs of nodes; else only if the network is slow.
    backend : str
        nccl, gloo, or auto: nccl if every node has a GPU, else gloo.
    patience_s : float
        How long ranks may take to import torch and find each other, in seconds. Default 90.
    """

    seconds: float
    pairs: bool
    backend: str
    patience_s: float = 90.0


def options(flags: Flags) -> Mapping[str, Any]:
    """Check the flags.

    Parameters
    ----------
    flags : Flags
        The flags of this launcher.

    Returns
    -------
    Mapping
        The options of the job (`Job.options`).

    Raises
    ------
    UsageError
        The value of a flag is invalid.
    """
    if flags.backend not in BACKENDS:
        raise UsageError(f"--backend is auto, nccl or gloo, got {flags.backend!r}")
    if flags.seconds < 1:
        raise UsageError(f"--seconds is at least 1, got {flags.seconds:g}")
    return {
        "seconds": flags.seconds,
        "pairs": flags.pairs,
        "backend": flags.backend,
        "patience_s": flags.patience_s,
    }


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
    return Requirements(modules=("torch",), port=True, peers=True)


def facts_from_flags(job: Job, nodes: Sequence[Node]) -> None:
    """Return None: the nodes must be asked for their GPUs.

    Parameters
    ----------
    job : Job
        The job.
    nodes : sequence of Node
        The nodes, by rank.
    """


def plan(job: Job, nodes: Sequence[Node], slots: Sequence[Slot], facts: Sequence[Facts]) -> Plan:
    """Plan the launch: one process per rank.

    Parameters
    ----------
    job : Job
        The job; its options come from `options`.
    nodes, facts : sequences of equal length
        The nodes and their facts, by node rank.
    slots : sequence of Slot
        Unused: a hosts file has no slots.

    Returns
    -------
    Plan

    Raises
    ------
    UsageError
        NCCL is requested and a node has no GPU; or there is only one rank.
    """
    backend = _backend(job, nodes, facts)
    counts = [fact.gpus if backend == "nccl" else 1 for fact in facts]
    if sum(counts) < 2:
        raise UsageError("a network is between at least two ranks", "name two hosts or more")
    starts = [sum(counts[:index]) for index in range(len(counts))]
    ranks = [list(range(start, start + count)) for start, count in zip(starts, counts, strict=True)]
    request = {**job.options, "backend": backend, "nodes": ranks}
    master, port = master_address(job, nodes), facts[0].port or job.port
    node_plans = tuple(
        NodePlan(
            node,
            fact.folder,
            tuple(_process(job.on(node), node, fact, ranks, rank, request, master, port) for rank in mine),
        )
        for node, fact, mine in zip(nodes, facts, ranks, strict=True)
    )
    defaults = resolved_defaults(job, nodes, master, port, ranks=f"{sum(counts)} ({backend})")
    return Plan(job, node_plans, sum(counts), defaults, len(nodes))


def _backend(job: Job, nodes: Sequence[Node], facts: Sequence[Facts]) -> str:
    requested = str(job.options["backend"])
    without = [node.label for node, fact in zip(nodes, facts, strict=True) if not fact.gpus]
    if requested == "nccl" and without:
        raise UsageError(f"--backend nccl needs GPUs, and {without[0]} has none", "omit the flag, or give gloo")
    return requested if requested != "auto" else ("gloo" if without else "nccl")


def _process(
    job: Job,
    node: Node,
    fact: Facts,
    ranks: Sequence[Sequence[int]],
    rank: int,
    request: Mapping[str, Any],
    master: str,
    port: int,
) -> Process:
    mine = ranks[node.rank]
    world = sum(map(len, ranks))
    env = {
        "PYTHONUNBUFFERED": "1",
        **environment.omp_threads(len(mine), fact.gpus, fact.cpus),
        **environment.visible_devices(node.gpus),
        **job.env,
        **environment.rank_variables(rank, rank - mine[0], world, len(mine), master, port),
        **environment.job_markers(job.job_id, node.rank),
    }
    name = f"rank-{rank}"
    argv = (job.python, f"{fact.folder}/{name}/{SCRIPT}", json.dumps(request))
    return Process(name, argv, env, rank=rank, files={SCRIPT: shims.source_of("network_benchmark")})

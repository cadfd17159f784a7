"""The job of `fab network`: one rank per GPU, or per node without GPUs; the ranks measure the network between them.

The script is part of torchfab and is sent with the plan: it need not be installed on the nodes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torchfab.core import environment
from torchfab.core.errors import UsageError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Facts, Job, Node, Plan, Process, Requirements, Slot
from torchfab.launchers import shims
from torchfab.launchers.rank_layout import Layout, Placement, lay_out, make_plan, process_environment

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
        raise UsageError(f"--seconds must be at least 1, got {flags.seconds:g}")
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
    """Return None: the nodes must be queried for their GPUs.

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
        raise UsageError("a network measurement needs at least two ranks", "name two hosts or more")
    layout = lay_out(job, nodes, facts, counts, note=backend)
    starts = [sum(counts[:index]) for index in range(len(counts))]
    ranks = [list(range(start, start + count)) for start, count in zip(starts, counts, strict=True)]
    request = json.dumps({**job.options, "backend": backend, "nodes": ranks})
    processes = [
        [_process(layout, each, rank, rank - mine[0], request) for rank in mine]
        for each, mine in zip(layout.placements, ranks, strict=True)
    ]
    return make_plan(layout, processes)


def _backend(job: Job, nodes: Sequence[Node], facts: Sequence[Facts]) -> str:
    requested = str(job.options["backend"])
    without = [node.label for node, fact in zip(nodes, facts, strict=True) if not fact.gpus]
    if requested == "nccl" and without:
        raise UsageError(f"--backend nccl needs GPUs, and {without[0]} has none", "omit the flag, or give gloo")
    return requested if requested != "auto" else ("gloo" if without else "nccl")


def _process(layout: Layout, placement: Placement, rank: int, local_rank: int, request: str) -> Process:
    job, name = placement.job, f"rank-{rank}"
    variables = environment.rank_variables(
        rank, local_rank, layout.world_size, placement.ranks, layout.master, layout.port
    )
    argv = (job.python, f"{placement.facts.folder}/{name}/{SCRIPT}", request)
    env = process_environment(placement, **variables)
    return Process(name, argv, env, rank=rank, files={SCRIPT: shims.source_of("network_benchmark")})

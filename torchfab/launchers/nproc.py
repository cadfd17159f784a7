"""How many ranks a node runs: the flag `--nproc-per-node`, as all launchers with one process per node understand it."""

from __future__ import annotations

from collections.abc import Sequence

from torchfab.core.errors import UsageError
from torchfab.core.flag_values import NumberOr, is_whole
from torchfab.core.specs import Facts, Job, Node
from torchfab.launchers import assumed_facts

MOST_PROCESSES = 1024  # ranks on one node; more is a slip
CPU_PROCESSES = 2  # ranks on a node without GPUs, where nothing else was said
HELP = "Ranks per node: auto (slots=, else its GPUs, else 2), gpu (its GPUs), or a number. [auto]"


def check(text: str) -> str:
    """Return the flag's value.

    Raises
    ------
    UsageError
        It is neither auto, nor gpu, nor a number from 1 to 1024.
    """
    return str(NumberOr(("auto", "gpu"), 1, MOST_PROCESSES).parse("--nproc-per-node", text))


def facts_from_flags(job: Job, nodes: Sequence[Node]) -> tuple[Facts, ...] | None:
    """Return the facts that the flags give, if they give all: ranks per node and port; else None."""
    asked = job.options["nproc_per_node"]
    counts = [int(asked) if is_whole(asked) else node.slots or len(node.gpus) for node in nodes]
    known = job.port and not job.node_dir.startswith("~") and asked != "gpu" and all(counts)
    return assumed_facts(job, nodes, counts) if known else None


def ranks_on(job: Job, node: Node, facts: Facts) -> int:
    """Return how many ranks a node runs.

    Raises
    ------
    UsageError
        `gpu` was asked for, and the node has none.
    """
    asked: str = job.options["nproc_per_node"]
    if is_whole(asked):
        return int(asked)
    if asked == "gpu" and not (node.gpus or facts.gpus):
        raise UsageError(f"--nproc-per-node gpu: {node.label} has no GPU", "use auto, or a number")
    return node.slots or len(node.gpus) or facts.gpus or CPU_PROCESSES


def counts_per_node(counts: Sequence[int]) -> str:
    """Return the numbers of ranks for people: `2 per node`, `uneven: 3 nodes with 8, 1 nodes with 4`."""
    if len(set(counts)) == 1:
        return f"{counts[0]} per node"
    return "uneven: " + ", ".join(f"{counts.count(count)} nodes with {count}" for count in sorted(set(counts)))

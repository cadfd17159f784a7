"""The flag `--nproc-per-node`, number of ranks on a node, for all launchers with one process per node."""

from __future__ import annotations

from collections.abc import Sequence

from torchfab.core.errors import UsageError
from torchfab.core.flag_values import NumberOr, is_whole
from torchfab.core.format import plural
from torchfab.core.specs import Facts, Job, Node
from torchfab.launchers import rank_layout
from torchfab.launchers.rank_layout import Layout

MOST_PROCESSES = 1024  # ranks on one node; a larger number is rejected as a typing error
CPU_PROCESSES = 2  # default number of ranks on a node without GPUs
HELP = "Ranks per node: auto (slots=, else its GPUs, else 2), gpu (its GPUs), or a number. [auto]"


def check(text: str) -> str:
    """Check the value of the flag.

    Parameters
    ----------
    text : str
        The value.

    Returns
    -------
    str
        The same value.

    Raises
    ------
    UsageError
        It is neither auto, nor gpu, nor a number from 1 to 1024.
    """
    return str(NumberOr(("auto", "gpu"), 1, MOST_PROCESSES).parse("--nproc-per-node", text))


def facts_from_flags(job: Job, nodes: Sequence[Node]) -> tuple[Facts, ...] | None:
    """Return the facts if the flags determine all of them: ranks per node and port.

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
    requested = job.options["nproc_per_node"]
    counts = [int(requested) if is_whole(requested) else node.slots or len(node.gpus) for node in nodes]
    return None if requested == "gpu" else rank_layout.assumed_facts(job, nodes, counts)


def lay_out(job: Job, nodes: Sequence[Node], facts: Sequence[Facts]) -> Layout:
    """Lay out the ranks of a job as the flag says.

    Parameters
    ----------
    job : Job
        The job; its option `nproc_per_node` comes from `check`.
    nodes, facts : sequences of equal length
        The nodes and their facts, by node rank.

    Returns
    -------
    Layout

    Raises
    ------
    UsageError
        `gpu` was requested and a node has no GPU; or no address is known for node 0.
    """
    counts = [ranks_on(job, node, fact) for node, fact in zip(nodes, facts, strict=True)]
    return rank_layout.lay_out(job, nodes, facts, counts, counts_per_node(counts))


def ranks_on(job: Job, node: Node, facts: Facts) -> int:
    """Return how many ranks a node runs.

    Parameters
    ----------
    job : Job
        The job.
    node : Node
        The node.
    facts : Facts
        Its facts.

    Returns
    -------
    int

    Raises
    ------
    UsageError
        `gpu` was requested and the node has no GPU.
    """
    requested: str = job.options["nproc_per_node"]
    if is_whole(requested):
        return int(requested)
    if requested == "gpu" and not (node.gpus or facts.gpus):
        raise UsageError(f"--nproc-per-node gpu: {node.label} has no GPU", "use auto, or a number")
    return node.slots or len(node.gpus) or facts.gpus or CPU_PROCESSES


def counts_per_node(counts: Sequence[int]) -> str:
    """Describe the numbers of ranks: `2 per node`, `uneven: 3 nodes with 8, 1 nodes with 4`.

    Parameters
    ----------
    counts : sequence of int
        Number of ranks on each node.

    Returns
    -------
    str
    """
    if len(set(counts)) == 1:
        return f"{counts[0]} per node"
    return "uneven: " + ", ".join(
        f"{plural(counts.count(count), 'node')} with {count}" for count in sorted(set(counts))
    )

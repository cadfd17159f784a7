"""`--hostfile slurm`: the hosts of the Slurm allocation of this terminal (salloc, or a batch script)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torchfab.core.errors import UsageError
from torchfab.core.flag_values import is_whole
from torchfab.core.inventory import parse_hosts_flag
from torchfab.core.specs import Node

HOSTFILE_KEYWORD = "slurm"
_COUNTS = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def allocated_nodes(environ: Mapping[str, str]) -> tuple[Node, ...]:
    """Return the nodes of the current Slurm allocation.

    Parameters
    ----------
    environ : mapping of str to str
        The environment of this terminal.

    Returns
    -------
    tuple of Node
        The slots of each node are its allocated GPUs, else its requested tasks, else unset.

    Raises
    ------
    UsageError
        This terminal is not in an allocation.
    """
    hosts = environ.get("SLURM_JOB_NODELIST")
    if not hosts:
        raise UsageError(
            "--hostfile slurm uses the hosts of a Slurm allocation, and this terminal is not in one",
            "start one: salloc --nodes 2; or submit the job: fab launch-slurm; for a file named slurm: ./slurm",
        )
    nodes = parse_hosts_flag(hosts, "SLURM_JOB_NODELIST")
    counts = _gpus(environ, len(nodes)) or _tasks(environ)
    if len(counts) != len(nodes):  # neither was requested: the launch determines the slots from the nodes' GPUs
        return nodes
    return tuple(replace(node, slots=count) for node, count in zip(nodes, counts, strict=True))


def _gpus(environ: Mapping[str, str], nodes: int) -> list[int]:
    """Return the GPUs of each node; empty if none were requested, or their distribution is unknown."""
    per_node = _total(environ.get("SLURM_GPUS_PER_NODE", ""))
    total = _total(environ.get("SLURM_GPUS", ""))
    if not per_node and total and total % nodes == 0:
        per_node = total // nodes
    return [per_node] * nodes if per_node else []


def _total(text: str) -> int:
    """Return the sum of counts as Slurm writes them: `8`, `a100:4`, `a100:2,v100:2`."""
    counts = [part.rpartition(":")[2] for part in text.split(",")]
    return sum(int(count) for count in counts if is_whole(count))


def _tasks(environ: Mapping[str, str]) -> list[int]:
    """Return the tasks of each node, parsed from `2(x3),1`; empty if the user did not request a number."""
    if "SLURM_NTASKS" not in environ:
        return []
    matches = [_COUNTS.fullmatch(part) for part in environ.get("SLURM_TASKS_PER_NODE", "").split(",")]
    return [int(match[1]) for match in matches if match for _ in range(int(match[2] or 1))]

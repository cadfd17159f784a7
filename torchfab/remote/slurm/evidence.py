"""Collect the evidence of why a Slurm job ended: log tails of each node, and output of the batch script and srun."""

from __future__ import annotations

import os
import time

from torchfab.remote.job import evidence, status
from torchfab.remote.slurm import job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# For all nodes together, and for one.
_SEARCH_S, _MAX_BYTES, _MAX_NODE_BYTES = 16.0, 16 * 1024 * 1024, 512 * 1024


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Return the status of the job and the evidence for its cause.

    Parameters
    ----------
    request : dict
        As for `torchfab.remote.slurm.job.status`.

    Returns
    -------
    dict
        As `torchfab.remote.slurm.job.status` returns it; `evidence`: for each node as
        `torchfab.remote.job.evidence.collect` returns it; `batch`: the last lines of slurm.log.
    """
    folder = request["folder"]
    return {
        **job.status(request),
        "evidence": _by_node(folder, request["nodes"]),
        "batch": status.tail(os.path.join(folder, job.LOG)),
    }


def _by_node(folder: str, nodes: int) -> list[dict[str, Any]]:
    """Return the evidence of each node. One host reads them all, so each node has its part of the time and the size."""
    deadline, found = time.monotonic() + _SEARCH_S, []
    for rank in range(nodes):
        search_s = max(0.0, deadline - time.monotonic()) / (nodes - rank)
        max_bytes = min(_MAX_NODE_BYTES, _MAX_BYTES // nodes)
        found.append(evidence.collect(job.node_folder(folder, rank), max_bytes, search_s))
    return found

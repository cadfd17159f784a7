"""Collect the evidence of why a Slurm job ended: log tails of each node, and output of the batch script and srun."""

from __future__ import annotations

import os
import time

from torchfab.remote.job import evidence, status
from torchfab.remote.slurm import job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Return the status of the job and the evidence for its cause.

    Parameters
    ----------
    request : dict
        As for `torchfab.remote.slurm.job.status`; and `max_bytes`, the number of bytes of the logs of each
        node to return, `search_s`, how long to search those of all nodes, in seconds.

    Returns
    -------
    dict
        As `torchfab.remote.slurm.job.status` returns it; `evidence`: for each node as
        `torchfab.remote.job.evidence.collect` returns it; `batch`: the last lines of slurm.log.
    """
    return {
        **job.status(request),
        "evidence": _by_node(request),
        "batch": status.tail(os.path.join(request["folder"], job.LOG)),
    }


def _by_node(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the evidence of each node. One host reads the logs of all nodes, so each node gets a part of the time."""
    deadline, nodes, found = time.monotonic() + request["search_s"], request["nodes"], []
    for rank in range(nodes):
        search_s = max(0.0, deadline - time.monotonic()) / (nodes - rank)
        folder = job.node_folder(request["folder"], rank)
        found.append(evidence.collect(folder, request["max_bytes"], search_s))
    return found

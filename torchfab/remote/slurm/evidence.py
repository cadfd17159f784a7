"""Collect the evidence of why a Slurm job ended: log tails of each node, and output of the batch script and srun."""

from __future__ import annotations

import os

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
        "evidence": [evidence.collect(job.node_folder(folder, rank)) for rank in range(request["nodes"])],
        "batch": status.tail(os.path.join(folder, job.LOG)),
    }

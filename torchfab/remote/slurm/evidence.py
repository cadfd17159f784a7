"""What tells why a Slurm job ended: each node's part of its folder, and what the batch script and srun said."""

from __future__ import annotations

import os

from torchfab.remote.job import evidence, status
from torchfab.remote.slurm import job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Say how the job is, as `torchfab.remote.slurm.job.status` does, and with it what tells why."""
    folder = request["folder"]
    return {
        **job.status(request),
        "evidence": [evidence.gather(job.node_folder(folder, rank)) for rank in range(request["nodes"])],
        "batch": status.tail(os.path.join(folder, job.LOG)),
    }

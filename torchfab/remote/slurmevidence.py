"""What tells why a Slurm job ended: each node's part of its folder, and what the batch script and srun said."""

from __future__ import annotations

import os

from torchfab.remote import evidence, life, slurm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Say how the job is, as `torchfab.remote.slurm.status` does, and with it what tells why."""
    folder = request["folder"]
    return {
        **slurm.status(request),
        "evidence": [evidence.gather(slurm.node_folder(folder, rank)) for rank in range(request["nodes"])],
        "batch": life.tail(os.path.join(folder, slurm.LOG)),
    }

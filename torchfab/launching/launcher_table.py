"""All launchers, each with the flags that it shares with others: what `fab launch-NAME` and the Python API take."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torchfab.cli.flags import GpuLaunchFlags, JobFlags, LaunchFlags, PodFlags
from torchfab.launchers import (
    AnyLauncher,
    BatchLauncher,
    Launcher,
    colossalai,
    deepspeed,
    kubernetes,
    mpi,
    per_gpu,
    per_node,
    slurm,
)

# Over a hosts file, and over a gpus file; and those that hand a job over to a scheduler.
ON_HOSTS: Mapping[str, tuple[Launcher, type[LaunchFlags]]] = MappingProxyType(
    {
        per_node.NAME: (per_node, LaunchFlags),
        per_gpu.NAME: (per_gpu, GpuLaunchFlags),
        deepspeed.NAME: (deepspeed, LaunchFlags),
        mpi.NAME: (mpi, LaunchFlags),
        colossalai.NAME: (colossalai, LaunchFlags),
    }
)
BATCH: Mapping[str, tuple[BatchLauncher, type[JobFlags]]] = MappingProxyType(
    {slurm.NAME: (slurm, JobFlags), kubernetes.NAME: (kubernetes, PodFlags)}
)
ALL: Mapping[str, tuple[AnyLauncher, type[JobFlags]]] = MappingProxyType({**ON_HOSTS, **BATCH})

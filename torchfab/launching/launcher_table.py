"""All launchers by name, each with the flags that it shares with others: for `fab launch-NAME` and the Python API.

A launcher is imported only when it launches, because a command needs at most one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torchfab import launchers
from torchfab.cli import flags
from torchfab.cli.flags import GpuLaunchFlags, JobFlags, LaunchFlags, PodFlags

# Launchers that start the job on hosts. BATCH: launchers that submit it to a scheduler.
ON_HOSTS: Mapping[str, type[LaunchFlags]] = MappingProxyType(
    {
        "per-node": LaunchFlags,
        "per-gpu": GpuLaunchFlags,
        "deepspeed": LaunchFlags,
        "mpi": LaunchFlags,
        "colossalai": LaunchFlags,
    }
)
BATCH: Mapping[str, type[JobFlags]] = MappingProxyType({"slurm": JobFlags, "kubernetes": PodFlags})
ALL: Mapping[str, type[JobFlags]] = MappingProxyType({**ON_HOSTS, **BATCH})


def launch_task(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that makes a task of `body(c, flags, own)` with the flags of a launch.

    Parameters
    ----------
    name : str
        Name of the launcher; a key of `ALL`.

    Returns
    -------
    callable
        The decorator.
    """
    return flags.launch_task(lambda: launchers.load_any(name).Flags, ALL[name])

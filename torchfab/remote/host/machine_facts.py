"""The facts about a machine that a plan needs: its GPUs, cores and clock."""

from __future__ import annotations

import os
import sys
import time

from torchfab.remote.host import identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_KFD_NODES = "/sys/class/kfd/kfd/topology/nodes"


def collect(environ: Mapping[str, str]) -> dict[str, Any]:
    """Collect the facts about this machine.

    Parameters
    ----------
    environ : mapping of str to str
        The environment of a process on it.

    Returns
    -------
    dict
        `hostname`, `machine` (see `identity`), `is_root`, `gpus`, `cpus`, `agent_python` (version of this interpreter),
        `time`.
    """
    return {
        "hostname": os.uname().nodename,
        "machine": identity.identify(),
        "is_root": os.geteuid() == 0,
        "gpus": count_gpus(environ),
        "cpus": len(os.sched_getaffinity(0)),
        "agent_python": ".".join(map(str, sys.version_info[:3])),
        "time": time.time(),
    }


def count_gpus(environ: Mapping[str, str]) -> int:
    """Count the GPUs that a process would see.

    Parameters
    ----------
    environ : mapping of str to str
        Its environment.

    Returns
    -------
    int
        The devices in CUDA_VISIBLE_DEVICES if that is set, else those that the drivers list.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    nvidia = _names("/proc/driver/nvidia/gpus") or [
        name for name in _names("/dev") if name.startswith("nvidia") and name[6:].isdigit()
    ]
    return len(nvidia) or _count_amd_gpus()


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _count_amd_gpus() -> int:
    # The KFD lists CPUs as nodes, too; they have no SIMD units.
    count = 0
    for name in _names(_KFD_NODES):
        try:
            with open(os.path.join(_KFD_NODES, name, "properties")) as file:
                count += any(line.split() > ["simd_count", "0"] for line in file if line.startswith("simd_count "))
        except OSError:  # a GPU that this container may not use
            pass
    return count

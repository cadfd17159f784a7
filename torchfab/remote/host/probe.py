"""What doctor asks of a node: all that can be seen of this machine without starting anything on it.

A part that fails is told as `{"failed": why}`; the others stand.
"""

from __future__ import annotations

import os
import resource
import socket
import threading
import time

from torchfab.remote import procfs, tmux
from torchfab.remote.host import (
    code_digest,
    connectivity,
    filesystems,
    gpu_health,
    interfaces,
    python_env,
    running_jobs,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Return everything about this machine.

    Parameters
    ----------
    request : dict
        `python`, `python_path` (PYTHONPATH of a job, or None), `python_timeout_s`, `workdir`, `node_dir`, `names` (the
        files whose contents are compared, relative to the workdir; None: those that this node finds), `variables`
        (names), `token` (name of a file by which others see that they share a disk with this node; empty: make none),
        `port` (to listen on; 0: a free one; None: on none).
    """
    workdir, node_dir = request["workdir"], request["node_dir"]
    parts: dict[str, Callable[[], Any]] = {
        "machine": machine,
        "python": lambda: python_env.ask(
            request["python"], workdir, request["python_path"], request["python_timeout_s"]
        ),
        "gpus": gpu_health.look,
        "tmux": _tmux,
        "places": lambda: filesystems.look(workdir, node_dir, request["token"]),
        "limits": limits,
        "interfaces": interfaces.all_of_them,
        "environment": lambda: {name: os.environ[name] for name in request["variables"] if name in os.environ},
        "jobs": running_jobs.jobs,
        "code": lambda: code_digest.look(workdir, request["names"]),
        "port": lambda: connectivity.listen(request["port"]),
    }
    return _all_at_once(parts)


def _all_at_once(parts: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Return what the parts give; they mostly wait for other programs, so they wait together."""
    told: dict[str, Any] = {}

    def work(name: str, part: Callable[[], Any]) -> None:
        try:
            told[name] = part()
        except Exception as error:  # one part of a sick machine must not hide the others
            told[name] = {"failed": f"{type(error).__name__}: {error}"}

    threads = [threading.Thread(target=work, args=item) for item in parts.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def machine() -> dict[str, Any]:
    """Return who this machine is."""
    name = socket.gethostname()
    return {
        "hostname": name,
        "boot_id": procfs.boot_id(),
        # Nodes of one network stack reach each other by loopback addresses too.
        "network": f"{procfs.boot_id()} {os.readlink('/proc/self/ns/net')}",
        "own_addresses": connectivity.addresses(name),
        "kernel": os.uname().release,
        "infiniband": os.path.isdir("/sys/class/infiniband") and bool(os.listdir("/sys/class/infiniband")),
        "time": time.time(),
    }


def _tmux() -> dict[str, Any]:
    try:
        return {"version": ".".join(map(str, tmux.version())), "oldest": ".".join(map(str, tmux.OLDEST))}
    except tmux.Unusable as error:
        return {"version": "", "problem": str(error)}


def limits() -> dict[str, int | None]:
    """Return soft limits as `ulimit -n -l -u` counts them (memory in bytes); None: unlimited."""
    kinds = {"files": resource.RLIMIT_NOFILE, "locked": resource.RLIMIT_MEMLOCK, "processes": resource.RLIMIT_NPROC}
    found = {name: resource.getrlimit(kind)[0] for name, kind in kinds.items()}
    return {name: None if value == resource.RLIM_INFINITY else value for name, value in found.items()}

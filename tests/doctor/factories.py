"""Factories for reports of nodes that are healthy except for given changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import msgspec

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.clock import Clock
from torchfab.core.specs import Node
from torchfab.doctor.collect import findings
from torchfab.doctor.finding import Finding
from torchfab.doctor.model import CheckRequirements, NodeReport, Report
from torchfab.transport.messages.doctor import ConnectivityAnswer, ProbeAnswer

REQUIREMENTS = CheckRequirements(workdir="/project", python="python3", node_dir="/project/.torchfab")
GIB = 1024**3
_PLACE = {
    "path": "/project",
    "at": "/project",
    "exists": True,
    "enterable": True,
    "free": 100 * GIB,
    "size": 200 * GIB,
    "free_files": 10**6,
    "filesystem": "ext4",
}
GPU: dict[str, Any] = {
    "bus": "00000000:07:00.0",
    "name": "NVIDIA H100 80GB HBM3",
    "uuid": "GPU-0",
    "memory_mib": 81559,
    "mig": False,
    "sick": "",
    "ecc": 0,
    "repair": "",
    "slowdown": [],
    "processes": [],
}


def probe(rank: int) -> dict[str, Any]:
    """Return the probe of a healthy node."""
    address = f"10.0.0.{rank + 1}"
    return {
        "machine": {
            "hostname": f"node{rank + 1}",
            "boot_id": str(rank),
            "network": f"{rank} net:[1]",
            "own_addresses": [address],
            "infiniband": False,
        },
        "python": {"python": "3.11.2", "path": "python3", "torch": "2.9.0", "cuda": "12.8", "nccl": "2.27.5"},
        "gpus": {"devices": 2, "driver": "570.86.15", "cuda": "12.8", "gpus": [dict(GPU), dict(GPU)], "problem": ""},
        "tmux": {"version": "3.3", "oldest": "3.2"},
        "places": {
            "node_dir": {**_PLACE, "path": "/project/.torchfab", "token": "", "problem": ""},
            "workdir": dict(_PLACE),
            "tmp": {**_PLACE, "path": "/tmp", "problem": ""},
            "shm": {**_PLACE, "path": "/dev/shm", "filesystem": "tmpfs"},
        },
        "limits": {"files": 65536, "locked": None, "processes": None},
        "interfaces": [
            {"name": "lo", "up": True, "mtu": 65536, "addresses": ["127.0.0.1"]},
            {"name": "eth0", "up": True, "mtu": 1500, "addresses": [address]},
        ],
        "environment": {},
        "jobs": [],
        "code": {"by": "git", "files": 3, "digest": "abcdef0123456789", "whole": True},
        "port": {"port": 41000, "greeting": "hello"} if rank == 0 else {},
    }


def connectivity(rank: int) -> dict[str, Any]:
    """Return the result of a healthy node's connection to node 0."""
    return {
        "addresses": ["10.0.0.1"],
        "source": f"10.0.0.{rank + 1}",
        "connection": {"outcome": "connected", "why": "", "address": "10.0.0.1", "seconds": 0.001},
        "sees": {"workdir": True, "node_dir": True},
    }


def merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with changes, which are merged into nested dictionaries."""
    made = copy.deepcopy(base)
    for name, value in changes.items():
        inside = isinstance(value, Mapping) and isinstance(made.get(name), dict)
        made[name] = merge(made[name], value) if inside else value
    return made


def make_node(
    rank: int, changes: Mapping[str, Any] | None = None, connection_changes: Mapping[str, Any] | None = None
) -> NodeReport:
    """Return a node that is healthy except for the changes."""
    return NodeReport(
        Node(rank, f"node{rank + 1}"),
        msgspec.convert(merge(probe(rank), changes or {}), ProbeAnswer),
        msgspec.convert(merge(connectivity(rank), connection_changes or {}), ConnectivityAnswer),
        Clock(0.0, 0.001),
        connect_s=0.1,
    )


def four_nodes(odd: NodeReport) -> list[NodeReport]:
    """Return four nodes, all healthy except the given one."""
    return [odd if rank == odd.node.rank else make_node(rank) for rank in range(4)]


def find(nodes: list[NodeReport], requirements: CheckRequirements = REQUIREMENTS) -> tuple[Finding, ...]:
    """Return all findings."""
    return findings(nodes, requirements, ConnectionSettings())


def only(nodes: list[NodeReport], requirements: CheckRequirements = REQUIREMENTS) -> Finding:
    """Return the only finding."""
    every = find(nodes, requirements)
    assert len(every) == 1, every
    return every[0]


def report(nodes: list[NodeReport]) -> Report:
    """Return the report on these nodes."""
    return Report(tuple(nodes), find(nodes), 1.25)

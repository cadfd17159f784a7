"""Factories for torchfab's values: a test passes the relevant values, the others have defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from torchfab.core.specs import Facts, Job, Node
from torchfab.transport.messages.launch import NodeFacts

JOB_ID = "gpt2-0a1b2c3d"


def make_job(**values: Any) -> Job:
    """Return a job, by default of launch-per-node."""
    base: dict[str, Any] = {
        "name": "gpt2",
        "job_id": JOB_ID,
        "launcher": "per-node",
        "script": ("train.py", "--lr", "3e-4"),
        "workdir": "/project",
        "python": "/venv/bin/python",
        "node_dir": "/scratch/torchfab",
    }
    return Job(**{**base, **values})


def make_nodes(*hosts: str | Mapping[str, Any]) -> tuple[Node, ...]:
    """Return nodes in the given order, each from its host name, or from the values that differ from the defaults."""
    given = [{"host": each} if isinstance(each, str) else dict(each) for each in hosts]
    return tuple(Node(**{"rank": rank, "origin": f"hosts:{rank + 1}", **values}) for rank, values in enumerate(given))


def make_facts(*gpus: int, cpus: int = 16, port: int = 29400) -> tuple[Facts, ...]:
    """Return the facts of nodes with these numbers of GPUs; the first one has the port."""
    return tuple(
        Facts(folder(rank), gpus=count, cpus=cpus, port=None if rank else port) for rank, count in enumerate(gpus)
    )


def make_node_facts(facts: Facts, **values: Any) -> NodeFacts:
    """Return the report of a node in phase one, with these facts in it."""
    known = {name: getattr(facts, name) for name in ("folder", "gpus", "cpus", "port", "is_root", "versions")}
    return msgspec.convert({**known, "hostname": "node1", "time": 0.0, **values}, NodeFacts)


def folder(node_rank: int) -> str:
    """Return the job's folder on a node."""
    return f"/scratch/torchfab/jobs/{JOB_ID}/node-{node_rank}"

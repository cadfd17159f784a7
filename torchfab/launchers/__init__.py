"""Launchers decide *what* runs: each is one file of pure functions that ends in argv and env.

A launcher module offers

    NAME      its name, as in the record and in `launch-<name>`
    Flags     a frozen dataclass of its own flags, beside those that all launches share
    options   Flags -> Mapping: the flags checked, as `Job.options`
    requirements       Job -> Requirements: what phase one checks on every node
    facts_from_flags   (Job, nodes) -> facts, when the flags leave nothing to ask the nodes; else None
    plan      (Job, nodes, slots, facts) -> Plan

and knows nothing of runtimes, connections, clocks or files.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torchfab.core.errors import UsageError
from torchfab.core.specs import Facts, Job, Node, Plan, Requirements, Slot


class Launcher(Protocol):
    """The signature that every launcher module has."""

    NAME: str

    def requirements(self, job: Job) -> Requirements: ...
    def facts_from_flags(self, job: Job, nodes: Sequence[Node]) -> tuple[Facts, ...] | None: ...
    def plan(self, job: Job, nodes: Sequence[Node], slots: Sequence[Slot], facts: Sequence[Facts]) -> Plan: ...


def escape_for_torchrun(script: Sequence[str]) -> tuple[str, ...]:
    """Return the script's words such that torchrun hands them on unchanged.

    It puts every word through string.Template, which knows `local_rank` and makes one `$` of two.
    """
    return tuple(re.sub(r"\$(?=\$|local_rank|\{local_rank\})", "$$", word) for word in script)


def master_address(job: Job, nodes: Sequence[Node]) -> str:
    """Return the address of the rendezvous: `--master-addr`, or how the other nodes reach node 0.

    Raises
    ------
    UsageError
        Node 0 is `localhost` and another node is not: the others would look for it on themselves.
    """
    first = nodes[0]
    if job.master_addr:
        return job.master_addr
    if first.is_local and not first.address and len(nodes) > 1:
        raise UsageError(
            f"{first.origin}: node 0 is localhost, and {nodes[1].label} cannot reach it by that name",
            "give this machine's address with --master-addr, or with address= in the hosts file",
        )
    return first.address or first.host


def assumed_facts(job: Job, nodes: Sequence[Node], gpus: Sequence[int]) -> tuple[Facts, ...]:
    """Return the facts of a dry run that connects nowhere: what the flags say, and the folders that follow."""
    port = job.port or None
    return tuple(
        Facts(folder=assumed_folder(job, node), gpus=count, port=port if node.rank == 0 else None)
        for node, count in zip(nodes, gpus, strict=True)
    )


def assumed_folder(job: Job, node: Node) -> str:
    """Return the job's folder on a node that was not asked for its home folder."""
    return posixpath.join(job.node_dir, "jobs", job.job_id, f"node-{node.rank}")


def resolved_defaults(job: Job, nodes: Sequence[Node], master: str, port: int, **more: str) -> Mapping[str, str]:
    """Return the defaults that torchfab chose, for people."""
    from torchfab.core.inventory import fold

    words: dict[str, Any] = {
        "job": job.name,
        "nodes": f"{len(nodes)} ({fold([node.host for node in nodes])})",
        **more,
        "master": f"{master}:{port}" + ("" if job.port else f" (a free port of {nodes[0].label})"),
        "workdir": job.workdir,
        "python": job.python,
    }
    return words

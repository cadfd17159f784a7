"""Launchers decide *what* runs: each is one file of pure functions that compute argv and env.

A launcher module offers

    NAME               its name, as in the record and in `launch-<name>`
    Flags              a frozen dataclass of the flags that only this launcher has
    options            Flags -> Mapping: the checked flags, as `Job.options`
    requirements       Job -> Requirements: what phase one checks on every node
    facts_from_flags   (Job, nodes) -> facts, if the flags determine all of them; else None
    plan               (Job, nodes, slots, facts) -> Plan

and does not depend on runtimes, connections, clocks or files.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torchfab.core.errors import UsageError
from torchfab.core.specs import Facts, Job, Node, Plan, Requirements, Slot


class Launcher(Protocol):
    """The interface of every launcher module."""

    NAME: str

    # Each module documents its own.
    def requirements(self, job: Job) -> Requirements: ...
    def facts_from_flags(self, job: Job, nodes: Sequence[Node]) -> tuple[Facts, ...] | None: ...
    def plan(self, job: Job, nodes: Sequence[Node], slots: Sequence[Slot], facts: Sequence[Facts]) -> Plan: ...


def escape_for_torchrun(script: Sequence[str]) -> tuple[str, ...]:
    """Escape a script and its arguments so that torchrun passes them on unchanged.

    torchrun applies string.Template to every argument, which replaces `$local_rank` and turns `$$` into `$`.

    Parameters
    ----------
    script : sequence of str
        The script and its arguments.

    Returns
    -------
    tuple of str
    """
    return tuple(re.sub(r"\$(?=\$|local_rank|\{local_rank\})", "$$", arg) for arg in script)


def master_address(job: Job, nodes: Sequence[Node]) -> str:
    """Return the address of the rendezvous: `--master-addr`, or the address by which the other nodes reach node 0.

    Parameters
    ----------
    job : Job
        The job.
    nodes : sequence of Node
        The nodes, by rank.

    Returns
    -------
    str

    Raises
    ------
    UsageError
        Node 0 is `localhost` and there are other nodes: they would connect to themselves.
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
    """Return the facts of a dry run that connects to no node, derived from the flags.

    Parameters
    ----------
    job : Job
        The job.
    nodes : sequence of Node
        The nodes, by rank.
    gpus : sequence of int
        Number of ranks on each node.

    Returns
    -------
    tuple of Facts
    """
    port = job.port or None
    return tuple(
        Facts(folder=assumed_folder(job, node), gpus=count, port=port if node.rank == 0 else None)
        for node, count in zip(nodes, gpus, strict=True)
    )


def assumed_folder(job: Job, node: Node) -> str:
    """Return the job's folder on a node whose home folder is unknown.

    Parameters
    ----------
    job : Job
        The job.
    node : Node
        The node.

    Returns
    -------
    str
    """
    return posixpath.join(job.node_dir, "jobs", job.job_id, f"node-{node.rank}")


def resolved_defaults(job: Job, nodes: Sequence[Node], master: str, port: int, **more: str) -> Mapping[str, str]:
    """Return the values that a launch shows, human-readable: those given and those chosen by default.

    Parameters
    ----------
    job : Job
        The job.
    nodes : sequence of Node
        The nodes, by rank.
    master : str
        Address of the rendezvous.
    port : int
        Port of the rendezvous.
    **more : str
        More values, shown after the nodes.

    Returns
    -------
    Mapping of str to str
        Texts by label, in the order in which they are shown.
    """
    from torchfab.core.inventory import fold

    values: dict[str, Any] = {
        "job": job.name,
        "nodes": f"{len(nodes)} ({fold([node.host for node in nodes])})",
        **more,
        "master": f"{master}:{port}" + ("" if job.port else f" (a free port of {nodes[0].label})"),
        "workdir": job.workdir,
        "python": job.python,
    }
    return values

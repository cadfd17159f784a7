"""Launchers: what runs. Each is one file of pure functions that ends in argv and env.

A launcher is a module that has the functions of `Launcher`; one that renders a job for a cluster's own scheduler has
those of `BatchLauncher` instead. mypy checks this in `load` and in fabfile.py. Launchers know nothing of runtimes,
connections, clocks or files.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torchfab.core.errors import TorchfabError, UsageError
from torchfab.core.specs import Facts, Job, Node, Plan, Requirements, Slot, Submission


class AnyLauncher(Protocol):
    """What all launchers have."""

    @property
    def NAME(self) -> str:  # noqa: N802  # a constant of the module
        """Name of the launcher, as in the record and in `launch-<name>`."""

    @property
    def Flags(self) -> type[Any]:  # noqa: N802  # a class of the module
        """A frozen dataclass of the launcher's own flags, in addition to those that all launches share."""

    def options(self, flags: Any) -> Mapping[str, Any]:
        """Return the checked flags, as `Job.options`.

        Raises
        ------
        UsageError
            The value of a flag is wrong.
        """


class Launcher(AnyLauncher, Protocol):
    """A launcher over a hosts file: the tmux runtime starts its plan."""

    def requirements(self, job: Job) -> Requirements:
        """Return what phase one checks on every node."""

    def facts_from_flags(self, job: Job, nodes: Sequence[Node]) -> tuple[Facts, ...] | None:
        """Return the facts of all nodes if the flags determine them, so that a dry run need not connect; else None."""

    def plan(self, job: Job, nodes: Sequence[Node], slots: Sequence[Slot], facts: Sequence[Facts]) -> Plan:
        """Return what runs where.

        Raises
        ------
        UsageError
            The flags do not fit the nodes.
        """


class BatchLauncher(AnyLauncher, Protocol):
    """A launcher for a cluster's own scheduler: its runtime submits what `plan` renders."""

    @property
    def RUNTIME(self) -> str:  # noqa: N802  # a constant of the module
        """Name of the runtime."""

    def plan(self, job: Job) -> Submission:
        """Return what is submitted.

        Raises
        ------
        UsageError
            The scheduler would not take it.
        """


def load(name: str) -> Launcher:
    """Return a launcher over a hosts file by its name.

    Raises
    ------
    TorchfabError
        There is no such launcher: the record was written by another version.
    """
    from torchfab.launchers import colossalai, deepspeed, mpi, network, per_gpu, per_node

    known: tuple[Launcher, ...] = (per_node, per_gpu, deepspeed, mpi, colossalai, network)
    for launcher in known:
        if name == launcher.NAME:
            return launcher
    raise TorchfabError(f"there is no launcher {name!r}", "use the torchfab that launched the job")


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
    return posixpath.join(node.node_dir or job.node_dir, "jobs", job.job_id, f"node-{node.rank}")


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
        "workdir": _by_node(nodes, [job.on(node).workdir for node in nodes]),
        "python": _by_node(nodes, [job.on(node).python for node in nodes]),
    }
    return values


def _by_node(nodes: Sequence[Node], values: Sequence[str]) -> str:
    """Describe a value of the nodes: `/venv/bin/python; node3: /opt/bin/python`."""
    from torchfab.core.inventory import fold

    hosts_by_value: dict[str, list[str]] = {}
    for node, value in zip(nodes, values, strict=True):
        hosts_by_value.setdefault(value, []).append(node.host)
    usual = max(hosts_by_value, key=lambda value: len(hosts_by_value[value]))
    return "; ".join([usual, *(f"{fold(hosts)}: {value}" for value, hosts in hosts_by_value.items() if value != usual)])

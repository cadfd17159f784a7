"""Shared by all launchers over a hosts file: where the ranks of a job run, and how their processes become a plan.

`plan` of a launcher lays out the ranks (`lay_out`, or `nproc.lay_out`), makes the processes of each node, and puts them
into a Plan (`make_plan`).
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from torchfab.core import environment
from torchfab.core.errors import UsageError
from torchfab.core.inventory import fold
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Facts, Job, Node, NodePlan, Plan, Process


@dataclass(frozen=True)
class Placement:
    """A node with the number of ranks that it runs.

    Parameters
    ----------
    job : Job
        The job, as it runs on the node.
    node : Node
        The node.
    facts : Facts
        Its facts.
    ranks : int
        Number of ranks on the node.
    """

    job: Job
    node: Node
    facts: Facts
    ranks: int


@dataclass(frozen=True)
class Layout:
    """Where the ranks of a job run, and how they find each other.

    Parameters
    ----------
    job : Job
        The job.
    placements : tuple of Placement
        The nodes, by rank.
    master : str
        Address of the rendezvous.
    port : int
        Port of the rendezvous.
    note : str
        Text that the launch prints after the number of ranks: `2 per node`; may be empty.
    """

    job: Job
    placements: tuple[Placement, ...]
    master: str
    port: int
    note: str = ""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes, by rank."""
        return tuple(each.node for each in self.placements)

    @property
    def facts(self) -> tuple[Facts, ...]:
        """The facts of the nodes, by rank."""
        return tuple(each.facts for each in self.placements)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of ranks on each node, by rank of the node."""
        return tuple(each.ranks for each in self.placements)

    @property
    def world_size(self) -> int:
        """Number of ranks of the job."""
        return sum(self.counts)


def lay_out(job: Job, nodes: Sequence[Node], facts: Sequence[Facts], counts: Sequence[int], note: str = "") -> Layout:
    """Lay out the ranks of a job.

    Parameters
    ----------
    job : Job
        The job.
    nodes, facts, counts : sequences of equal length
        The nodes, their facts and their numbers of ranks, by node rank.
    note : str
        As in Layout.

    Returns
    -------
    Layout

    Raises
    ------
    UsageError
        No address is known for node 0.
    """
    placements = tuple(Placement(job.on(each[0]), *each) for each in zip(nodes, facts, counts, strict=True))
    return Layout(job, placements, master_address(job, nodes), facts[0].port or job.port, note)


def process_environment(placement: Placement, **own: str) -> dict[str, str]:
    """Return the environment of a process on a node.

    Parameters
    ----------
    placement : Placement
        The node.
    **own : str
        Variables of the launcher, which take precedence over those of the job.

    Returns
    -------
    dict of str to str
        It includes the variables that identify the process as part of the job, by which `fab stop` finds it.
    """
    job, facts = placement.job, placement.facts
    defaults = {"PYTHONUNBUFFERED": "1", **environment.omp_threads(placement.ranks, facts.gpus, facts.cpus)}
    return {
        **{name: value for name, value in defaults.items() if name not in facts.setup_names},
        **environment.visible_devices(placement.node.gpus),
        **job.env,
        **own,
        **environment.job_markers(job.job_id, placement.node.rank),
    }


def make_plan(
    layout: Layout,
    processes: Iterable[Sequence[Process]],
    shown: Mapping[str, str] = MappingProxyType({}),
    min_nodes: int = 0,
    has_head: bool = False,
) -> Plan:
    """Return the plan of a job.

    Parameters
    ----------
    layout : Layout
        Where its ranks run.
    processes : iterable of sequence of Process
        The processes of each node, by node rank.
    shown : Mapping of str to str
        Texts by label that the launch prints after the number of ranks. Default: none.
    min_nodes : int
        As in Plan. Default: all nodes.
    has_head : bool
        As in Plan. Default False.

    Returns
    -------
    Plan
    """
    node_plans = tuple(
        NodePlan(each.node, each.facts.folder, tuple(of_node))
        for each, of_node in zip(layout.placements, processes, strict=True)
    )
    defaults = _resolved_defaults(layout, shown)
    return Plan(layout.job, node_plans, layout.world_size, defaults, min_nodes or len(node_plans), has_head)


def _resolved_defaults(layout: Layout, shown: Mapping[str, str]) -> dict[str, str]:
    """Return the values that a launch prints, human-readable: those given and those chosen by default."""
    job, nodes = layout.job, layout.nodes
    has_setup = any(each.job.setup for each in layout.placements)
    return {
        "job": job.name,
        "nodes": f"{len(nodes)} ({fold([node.host for node in nodes])})",
        "ranks": f"{layout.world_size}" + (f" ({layout.note})" if layout.note else ""),
        **shown,
        "master": endpoint(layout.master, layout.port) + ("" if job.port else f" (a free port of {nodes[0].label})"),
        "workdir": _by_node(layout, lambda job: job.workdir),
        "python": _by_node(layout, lambda job: job.python),
        **({"setup": _by_node(layout, lambda job: "; ".join(job.setup.splitlines()))} if has_setup else {}),
    }


def _by_node(layout: Layout, value: Callable[[Job], str]) -> str:
    """Describe a value of the nodes: `/venv/bin/python; node3: /opt/bin/python`."""
    hosts_by_value: dict[str, list[str]] = {}
    for each in layout.placements:
        hosts_by_value.setdefault(value(each.job), []).append(each.node.host)
    usual = max(hosts_by_value, key=lambda text: len(hosts_by_value[text]))
    others = [f"{fold(hosts)}: {text}" for text, hosts in hosts_by_value.items() if text != usual]
    return "; ".join([usual, *others])


def endpoint(address: str, port: int) -> str:
    """Return an address with a port, as URLs and torchrun's --rdzv-endpoint write it.

    Parameters
    ----------
    address : str
        A name or an address; IPv6 without brackets.
    port : int
        The port.

    Returns
    -------
    str
        `node1:5001`, `[2001:db8::1]:5001`.
    """
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


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


def assumed_facts(job: Job, nodes: Sequence[Node], counts: Sequence[int]) -> tuple[Facts, ...] | None:
    """Derive the facts of a dry run without connections from the flags: a node is assumed to have a GPU per rank.

    Parameters
    ----------
    job : Job
        The job.
    nodes : sequence of Node
        The nodes, by rank.
    counts : sequence of int
        Number of ranks on each node; 0 where the flags do not determine it.

    Returns
    -------
    tuple of Facts or None
        None: the nodes must be queried for their number of ranks, a free port, or the home folder.
    """
    if not job.port or job.node_dir.startswith("~") or not all(counts):
        return None
    return tuple(
        Facts(_assumed_folder(job, node), gpus=count, port=None if node.rank else job.port)
        for node, count in zip(nodes, counts, strict=True)
    )


def _assumed_folder(job: Job, node: Node) -> str:
    return posixpath.join(node.node_dir or job.node_dir, "jobs", job.job_id, f"node-{node.rank}")

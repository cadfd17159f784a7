"""torchrun once per line of `hosts`. To change a launch, change `torchrun_argv`.

The tutorial's one-liner was `xargs -a hosts -I{} ssh {} tmux new-session -d ... torchrun --rdzv-endpoint $(head -n1
hosts):5001 ...`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchfab.core.errors import UsageError
from torchfab.core.flag_values import WholeNumber, flag
from torchfab.core.format import plural
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Facts, Job, Node, Plan, Process, Requirements, Slot
from torchfab.launchers import nproc, torchrun_agent, torchrun_rank
from torchfab.launchers.rank_layout import Layout, Placement, endpoint, make_plan, process_environment

NAME = "per-node"
# <log-dir>/<rdzv-id>_<random>/attempt_<k>/<local_rank>/stdout.log
RANK_LOGS = r"logs/[^/]+/attempt_(?P<attempt>\d+)/(?P<local_rank>\d+)/std(?:out|err)\.log"


@dataclass(frozen=True)
class Flags:
    """The flags of launch-per-node alone."""

    nproc_per_node: str = flag("auto", nproc.HELP)
    nnodes: str = flag("", "MIN:MAX for an elastic job. [the number of hosts]")
    max_restarts: int = flag(0, "How often torchrun restarts failed ranks. [0]", WholeNumber())
    rdzv_backend: str = flag("c10d", "c10d, or static: ranks follow the hosts file, no elasticity. [c10d]")
    rdzv_timeout: int = flag(600, "Seconds that nodes wait for each other at the rendezvous. [600]", WholeNumber(1))


def options(flags: Flags) -> Mapping[str, Any]:
    """Check the flags.

    Parameters
    ----------
    flags : Flags
        The flags of this launcher.

    Returns
    -------
    Mapping
        The options of the job (`Job.options`).

    Raises
    ------
    UsageError
        The value of a flag is invalid.
    """
    if flags.rdzv_backend not in ("c10d", "static"):
        raise UsageError(f"--rdzv-backend is c10d or static, got {flags.rdzv_backend!r}")
    return {
        "nproc_per_node": nproc.check(flags.nproc_per_node),
        "nnodes": _nnodes(flags.nnodes),
        "max_restarts": flags.max_restarts,
        "rdzv_backend": flags.rdzv_backend,
        "rdzv_timeout_s": flags.rdzv_timeout,
    }


def _nnodes(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    low, colon, high = text.partition(":")
    each = WholeNumber(1, form="N or MIN:MAX, each ")
    least = each.parse("--nnodes", low)
    most = each.parse("--nnodes", high) if colon else least
    if most < least:
        raise UsageError(f"--nnodes must be N or MIN:MAX, got {text!r}: {most} is less than {least}")
    return least, most


def requirements(job: Job) -> Requirements:
    """List what every node must have.

    Parameters
    ----------
    job : Job
        The job.

    Returns
    -------
    Requirements
    """
    # With c10d any node may become the master of the ranks: the one whose address sorts first.
    return Requirements(modules=("torch",), port=True, peers=job.options["rdzv_backend"] == "c10d")


facts_from_flags = nproc.facts_from_flags


def plan(job: Job, nodes: Sequence[Node], slots: Sequence[Slot], facts: Sequence[Facts]) -> Plan:
    """Plan the launch: one torchrun agent on each node.

    Parameters
    ----------
    job : Job
        The job; its options come from `options`.
    nodes, facts : sequences of equal length
        The nodes and their facts, by node rank.
    slots : sequence of Slot
        Unused: a hosts file has no slots.

    Returns
    -------
    Plan

    Raises
    ------
    UsageError
        The number of hosts does not fit `--nnodes`, or no address is known for node 0.
    """
    least, most = _bounds(job, nodes)
    layout = nproc.lay_out(job, nodes, facts)
    agents = [_agent(each, torchrun_argv(layout, each, (least, most))) for each in layout.placements]
    return make_plan(layout, [(agent,) for agent in agents], min_nodes=least)


def torchrun_argv(layout: Layout, placement: Placement, nnodes: tuple[int, int]) -> tuple[str, ...]:
    """Return the command that runs on one node.

    Parameters
    ----------
    layout : Layout
        Where the ranks run.
    placement : Placement
        The node.
    nnodes : tuple of int
        Smallest and largest number of nodes.

    Returns
    -------
    tuple of str
    """
    job, (least, most) = placement.job, nnodes
    return (
        *(job.python, *torchrun_agent.arguments(f"{placement.facts.folder}/agent/{torchrun_agent.FILE}")),
        *("--rdzv-id", job.job_id),
        *_rendezvous(layout, placement.node),
        *("--nnodes", f"{least}:{most}" if least < most else str(most)),
        *("--nproc-per-node", str(placement.ranks)),
        *("--max-restarts", str(job.options["max_restarts"])),
        *("--redirects", "3"),
        *("--log-dir", f"{placement.facts.folder}/agent/logs"),
        *torchrun_rank.command(job, f"{placement.facts.folder}/agent/{torchrun_rank.FILE}"),
    )


def _rendezvous(layout: Layout, node: Node) -> tuple[str, ...]:
    options, master, port = layout.job.options, layout.master, layout.port
    if options["rdzv_backend"] == "static":
        return (
            *("--rdzv-backend", "static"),
            *("--master-addr", master, "--master-port", str(port)),
            *("--node-rank", str(node.rank)),
        )
    # is_host is explicit: otherwise torchrun compares host names to guess which node hosts the c10d store.
    timeout = options["rdzv_timeout_s"]
    conf = f"is_host={int(node.rank == 0)},join_timeout={timeout},read_timeout={timeout}"
    local = ("--local-addr", _own_address(node, master))
    return ("--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint(master, port), "--rdzv-conf", conf, *local)


def _own_address(node: Node, master: str) -> str:
    """Return the address by which the other nodes reach a node.

    Without it, torchrun announces socket.getfqdn(), which on Debian resolves to 127.0.1.1. It must be right on every
    node: with c10d the master of the ranks is the node whose address sorts first, not node 0.
    """
    if node.rank > 0 and node.is_local and not node.address:
        raise UsageError(
            f"{node.origin}: the other nodes cannot reach localhost by that name",
            "give this machine's address with address= in the hosts file, or use --rdzv-backend static",
        )
    return node.address or (master if node.rank == 0 else node.host)


def _agent(placement: Placement, argv: tuple[str, ...]) -> Process:
    error_file = f"{placement.facts.folder}/agent/errors/error.json"
    env = process_environment(placement, TORCHELASTIC_ERROR_FILE=error_file)
    files = {torchrun_agent.FILE: torchrun_agent.CODE, torchrun_rank.FILE: torchrun_rank.CODE}
    return Process("agent", argv, env, rank_logs=RANK_LOGS, folders=("logs", "errors"), files=files)


def _bounds(job: Job, nodes: Sequence[Node]) -> tuple[int, int]:
    """Return the smallest and the largest number of nodes that the job runs with."""
    least, most = job.options["nnodes"] or (len(nodes), len(nodes))
    if not least <= len(nodes) <= most:
        asked = f"{least}:{most}" if least < most else most
        hosts = plural(len(nodes), "host")
        raise UsageError(f"--nnodes {asked} does not fit the {hosts}", "change --nnodes or the hosts")
    if least < most and job.options["rdzv_backend"] == "static":
        raise UsageError("--rdzv-backend static cannot be elastic", f"use --nnodes {most}, or omit the backend")
    return least, most

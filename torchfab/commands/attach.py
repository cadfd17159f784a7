"""`fab attach`: open a terminal on a job."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Sequence

from torchfab import runtimes
from torchfab.core import inventory
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus
from torchfab.monitoring.job_status import ask_status
from torchfab.records import Record

_log = logging.getLogger(__name__)


def attach_argv(record: Record, node: str, rank: str) -> tuple[str, ...]:
    """Return the command that attaches this terminal to a job.

    Parameters
    ----------
    record : Record
        The job.
    node : str
        Rank, host or label of the node; empty: the first one.
    rank : str
        Attach to the node of this rank instead; empty: use `node`.

    Returns
    -------
    tuple of str
        The command.

    Raises
    ------
    UsageError
        The job has no such node or rank, or has ended there.
    TorchfabError
        The node cannot be reached.
    """
    status = ask_status(record)
    chosen = _node_of_rank(status, rank) if rank else _node_named(record.name, status, node)
    node_status = next(each for each in status.nodes if each.node == chosen)
    if node_status.state == "unreachable":
        raise TorchfabError(f"{chosen.label} cannot be reached: {node_status.reason}")
    if node_status.state not in ("starting", "running"):
        problem = f"job {record.name} is not running on {chosen.label}: {node_status.state}"
        raise UsageError(problem, f"fab logs {record.name}")
    window = f"rank-{rank}" if rank and any(each.name == f"rank-{rank}" for each in node_status.processes) else ""
    argv: tuple[str, ...] = runtimes.load(record.runtime).attach_argv(record, chosen, window)
    return argv


def _node_named(job: str, status: JobStatus, name: str) -> Node:
    nodes = [each.node for each in status.nodes]
    for node in nodes:
        if name in ("", str(node.rank), node.host, node.label):
            return node
    if not nodes:
        raise UsageError(f"job {job} is not running on any node: {status.state}", f"fab status {job}")
    labels = inventory.fold([node.label for node in nodes])
    raise UsageError(f"job {job} has no node {name!r}", f"its nodes: {labels}")


def _node_of_rank(status: JobStatus, rank: str) -> Node:
    for node in status.nodes:
        names = {each.name for each in node.processes} | {f"rank-{each.rank}" for each in node.ranks}
        if f"rank-{rank}" in names:
            return node.node
    raise UsageError(f"no node runs rank {rank!r}", "fab status shows which ranks run, and where")


def run(argv: Sequence[str]) -> int:
    """Replace this process with the command that attaches.

    Parameters
    ----------
    argv : sequence of str
        The command from `attach_argv`.

    Returns
    -------
    int
        Never.

    Raises
    ------
    UsageError
        Standard input or output is not a terminal, or the program is not installed here.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("fab attach needs a terminal", "without one: fab logs --follow")
    sys.stdout.flush()
    _log.debug("running %s", shlex.join(argv))
    try:
        os.execvp(argv[0], list(argv))
    except OSError as error:
        problem = f"fab attach needs {argv[0]} on this machine: {error.strerror}"
        raise UsageError(problem, "install it; without it: fab logs --follow") from None

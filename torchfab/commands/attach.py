"""`fab attach`: a terminal on a job."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from torchfab import runtimes
from torchfab.commands.status import ask_status
from torchfab.core import inventory
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus
from torchfab.records import Record


def attach_argv(record: Record, node: str, rank: str) -> tuple[str, ...]:
    """Return the command that attaches this terminal to a job.

    Raises
    ------
    UsageError
        The job has no such node or rank, or has ended there.
    """
    found = ask_status(record)
    chosen = _node_of_rank(found, rank) if rank else _node_named(record.name, found, node)
    here = next(each for each in found.nodes if each.node == chosen)
    if here.state == "unreachable":
        raise TorchfabError(f"{chosen.label} cannot be reached: {here.reason}")
    if here.state not in ("starting", "running"):
        raise UsageError(f"job {record.name} does not run on {chosen.label}: {here.state}", f"fab logs {record.name}")
    window = f"rank-{rank}" if rank and any(each["name"] == f"rank-{rank}" for each in here.processes) else ""
    argv: tuple[str, ...] = runtimes.load(record.runtime).attach_argv(record, chosen, window)
    return argv


def _node_named(job: str, found: JobStatus, name: str) -> Node:
    nodes = [each.node for each in found.nodes]
    for node in nodes:
        if name in ("", str(node.rank), node.host, node.label):
            return node
    if not nodes:
        raise UsageError(f"job {job} runs on no node: {found.state}", f"fab status {job}")
    labels = inventory.fold([node.label for node in nodes])
    raise UsageError(f"job {job} has no node {name!r}", f"its nodes: {labels}")


def _node_of_rank(found: JobStatus, rank: str) -> Node:
    for node in found.nodes:
        names = {each["name"] for each in node.processes} | {f"rank-{each['rank']}" for each in node.ranks}
        if f"rank-{rank}" in names:
            return node.node
    raise UsageError(f"no node runs rank {rank!r}", "fab status shows which ranks run, and where")


def run(argv: Sequence[str]) -> int:
    """Replace this process with the command that attaches.

    Raises
    ------
    UsageError
        There is no terminal to attach, or the program that does it is not installed here.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("fab attach needs a terminal", "without one: fab logs --follow")
    sys.stdout.flush()
    try:
        os.execvp(argv[0], list(argv))
    except OSError as error:
        what = f"fab attach needs {argv[0]} on this machine: {error.strerror}"
        raise UsageError(what, "install it; without it: fab logs --follow") from None

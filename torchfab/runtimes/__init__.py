"""Runtimes decide *where a job lives*, and how to see and stop it there. They do not know launchers.

A runtime module offers

    NAME                                      its name, as in the record
    prepare(job, nodes, needs, ...)           phase one on every node; nothing is started
    start(plan, prepared, ...)                phase two; instead of both, a cluster's own scheduler has
    submit(record, submission) -> details     the job is handed over, or what had been is taken back
    status(record) -> JobStatus               how the job is
    follow(record, request) -> events         its logs, and the end of each node
    evidence(record) -> Evidence              what tells why it ended as it did
    stacks(record, request) -> Dump           what every rank is doing; an error where the runtime cannot look
    stop(record, grace_s) -> StopReports      end it, with proof
    attach_argv(record, ...) -> argv          a terminal on one of its processes
    forget(record) -> reasons                 remove its folders; why that failed, by host
    machines(record) -> nodes, addresses      where it runs, if ssh reaches that, and what names the job there (or None)
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from torchfab.core.errors import TorchfabError
from torchfab.core.specs import Node
from torchfab.core.status import NodeStatus

_MODULES = {
    "tmux": "torchfab.runtimes.tmux",
    "slurm": "torchfab.runtimes.slurm.runtime",
    "kubernetes": "torchfab.runtimes.kubernetes.runtime",
}


def load(name: str) -> ModuleType:
    """Return the runtime module of that name; it is imported only when a job needs it."""
    return importlib.import_module(_MODULES[name])


@dataclass(frozen=True)
class StopReport:
    """What `stop` did on one node.

    Parameters
    ----------
    asked : int
        How many processes were asked to end.
    killed, left : tuple of str
        Those that had to be killed, and those that run nevertheless, described.
    seconds : float
        How long it took.
    error : TorchfabError, optional
        Why nothing is known of the node.
    words : str
        What was done, where counts do not say it; empty for the counts' own words.
    status : NodeStatus, optional
        How the job is there now, where the node told that too.
    """

    node: Node
    signalled: int = 0
    killed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    seconds: float = 0.0
    error: TorchfabError | None = None
    summary: str = ""
    status: NodeStatus | None = None

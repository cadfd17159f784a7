"""Runtimes: where a job runs (tmux, Slurm, Kubernetes), and how to query and stop it there. They do not know launchers.

A runtime module offers

    NAME                                      its name, as in the record
    prepare(job, nodes, requirements, ...)    phase one on every node; nothing is started
    start(plan, prepared, ...)                phase two; runtimes with a scheduler have submit() instead of both
    submit(record, submission) -> details     submit the job to the scheduler; roll back if that fails
    status(record) -> JobStatus               current state of the job
    follow(record, request) -> events         its log lines, and the end of the job on each node
    evidence(record) -> Evidence              the facts from which `fab why` derives the cause of a failure
    stacks(record, request) -> Dump           stack of every rank; an error where the runtime cannot take stacks
    stop(record, grace_s) -> StopReports      stop the job and verify that no process is left
    attach_argv(record, ...) -> argv          command that opens a terminal on one of its processes
    forget(record) -> reasons                 remove its folders; return errors by host
    machines(record) -> nodes, addresses      its hosts, if ssh reaches them, and the job's address there (or None)
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
    """Import and return a runtime module. The import is lazy: only a job that uses the runtime pays for it.

    Parameters
    ----------
    name : str
        `tmux`, `slurm` or `kubernetes`.

    Returns
    -------
    module
        The runtime module.
    """
    return importlib.import_module(_MODULES[name])


@dataclass(frozen=True)
class StopReport:
    """Result of `stop` on one node.

    Parameters
    ----------
    node : Node
        The node.
    signalled : int
        Number of processes that received SIGTERM.
    killed, left : tuple of str
        Descriptions of the processes that needed SIGKILL, and of those that still run.
    seconds : float
        Duration of the stop.
    error : TorchfabError, optional
        Why the node returned no result.
    summary : str
        What was done, if the counts do not describe it; empty: derive the text from the counts.
    status : NodeStatus, optional
        Status of the job on the node after the stop, if the node reported it.
    """

    node: Node
    signalled: int = 0
    killed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    seconds: float = 0.0
    error: TorchfabError | None = None
    summary: str = ""
    status: NodeStatus | None = None

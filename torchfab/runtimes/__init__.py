"""Runtimes: where a job lives, and how it is queried and stopped there. They do not know launchers.

A runtime is a module that has the functions of `Runtime`; one of a cluster's own scheduler also has those of
`BatchRuntime`. mypy checks this in `load` and `load_batch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torchfab.core.errors import TorchfabError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus

if TYPE_CHECKING:
    from torchfab.core.events import EventStream
    from torchfab.core.specs import Submission
    from torchfab.profiling.model import JobProfile
    from torchfab.records import Record
    from torchfab.stacks.model import StackDump
    from torchfab.transport.messages.job import CheckpointAnswer
    from torchfab.why.evidence import Evidence


@dataclass(frozen=True)
class StopReport:
    """Result of `stop` on one node.

    Parameters
    ----------
    node : Node
        The node.
    signalled : int
        Number of processes that ran.
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
    ended_ranks, killed_ranks : int
        Number of ranks that ended by themselves, and of those that were killed after the grace period.
    ranks_s : float
        How long the slowest rank that ended by itself took, in seconds.
    unfinished_ranks : int
        Number of killed ranks that still handled the signal.
    writing : tuple of str
        The files that those had open for writing.
    proof : str
        By which means it is known that no process is left: "cgroup", "proc", "slurm", "kubernetes"; empty: unknown.
    cleared_files, cleared_bytes, cleared_folders : int
        What processes had left outside the job's folder, and was removed: files of shared memory with their size, and
        temporary folders.
    """

    node: Node
    signalled: int = 0
    killed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    seconds: float = 0.0
    error: TorchfabError | None = None
    summary: str = ""
    status: NodeStatus | None = None
    ended_ranks: int = 0
    killed_ranks: int = 0
    ranks_s: float = 0.0
    unfinished_ranks: int = 0
    writing: tuple[str, ...] = ()
    proof: str = ""
    cleared_files: int = 0
    cleared_bytes: int = 0
    cleared_folders: int = 0


@dataclass(frozen=True)
class RankSignal:
    """What a signal does to a rank.

    Parameters
    ----------
    rank : int, optional
        The rank; None if it is not known.
    effect : {"handled", "ignored", "ends"}
        "ends": it has no handler, and the signal would end it.
    sent : bool
        Whether it was sent.
    """

    rank: int | None
    effect: str
    sent: bool = False


@dataclass(frozen=True)
class SignalReport:
    """Result of `signal` on one node.

    Parameters
    ----------
    node : Node
        The node.
    ranks : tuple of RankSignal
        The selected ranks that run there.
    error : TorchfabError, optional
        Why the node returned no result.
    """

    node: Node
    ranks: tuple[RankSignal, ...] = ()
    error: TorchfabError | None = None

    @property
    def may_send(self) -> bool:
        """Whether the node has answered, and the signal would end none of its ranks."""
        return self.error is None and all(each.effect != "ends" for each in self.ranks)


class CheckpointWatch(Protocol):
    """Open connections to the hosts that see the files of a job's checkpoints."""

    def look(self, requests: Mapping[int, Mapping[str, Any]]) -> Mapping[Node, CheckpointAnswer | TorchfabError]:
        """Return what has changed on each host.

        Parameters
        ----------
        requests : Mapping of int to Mapping
            `folders`, `since`, `busy` by node rank, as `torchfab.remote.job.checkpoint_files.look` takes them.
        """

    def close(self) -> None:
        """Close the connections."""


class Runtime(Protocol):
    """What every command can do with a job, whichever runtime it lives in."""

    @property
    def NAME(self) -> str:  # noqa: N802  # a constant of the module
        """Name of the runtime, as in the record."""

    def status(self, record: Record) -> JobStatus:
        """Return the state of the job on each of its nodes; a node without an answer is `unreachable`."""

    def follow(self, record: Record, request: Mapping[str, Any], nodes: Sequence[Node] | None = None) -> EventStream:
        """Yield the log lines of the job, and the end of each node.

        Parameters
        ----------
        request : Mapping
            `follow` (bool), `lines` (int or None for all), `ranks` (list of int or None), `grep` (str or None).
        nodes : sequence of Node, optional
            Default: all nodes of the job.
        """

    def evidence(self, record: Record) -> Evidence:
        """Return what is known of why the job ended as it did."""

    def stacks(self, record: Record, request: Mapping[str, Any]) -> StackDump:
        """Return the stack of each rank.

        Raises
        ------
        TorchfabError
            The runtime cannot look into its processes.
        """

    def profile(self, record: Record, ranks: Sequence[int] | None, seconds: float, folder: Path) -> JobProfile:
        """Profile ranks at one instant, and put their traces into a folder.

        Raises
        ------
        TorchfabError
            The runtime's ranks have no probes.
        """

    def stop(self, record: Record, grace_s: float, nodes: Sequence[Node] | None = None) -> tuple[StopReport, ...]:
        """End the job on its nodes, or on some: SIGTERM, `grace_s` seconds, SIGKILL; return what was left."""

    def signal(self, record: Record, name: str, ranks: Sequence[int] | None) -> tuple[SignalReport, ...]:
        """Send a signal once to each running rank; to none if it would end one, or if a node does not answer.

        Parameters
        ----------
        name : str
            Its name: `SIGUSR1`.
        ranks : sequence of int, optional
            Which ranks. None: all.

        Raises
        ------
        TorchfabError
            The runtime cannot signal its processes.
        """

    def watch_checkpoints(self, record: Record) -> CheckpointWatch:
        """Return a watch of the files of the job's checkpoints; the caller closes it.

        Raises
        ------
        TorchfabError
            The runtime cannot look into the job's files.
        """

    def attach_argv(self, record: Record, node: Node, window: str) -> tuple[str, ...]:
        """Return the command that opens a terminal on a process of the job."""

    def forget(self, record: Record) -> dict[str, TorchfabError]:
        """Remove the job's folders from its nodes; return why that failed, by host."""

    def machines(self, record: Record) -> list[tuple[Node, Mapping[str, Any] | None]]:
        """Return the machines of the job, and what names the job there (None: nothing).

        Raises
        ------
        TorchfabError
            SSH does not reach them, or they are not known.
        """


class BatchRuntime(Runtime, Protocol):
    """A runtime that hands a job over to a cluster's own scheduler."""

    def submit(self, record: Record, submission: Submission) -> dict[str, Any]:
        """Hand over the job; return what the record has to keep, such as the scheduler's id of it.

        Raises
        ------
        TorchfabError
            It was not accepted, or what had been accepted was removed again.
        """


def load(name: str) -> Runtime:
    """Return a runtime by its name. Its module is imported only when a job needs it."""
    if name == "tmux":
        from torchfab.runtimes import tmux

        return tmux
    return load_batch(name)


def load_batch(name: str) -> BatchRuntime:
    """Return the runtime of a scheduler by its name.

    Raises
    ------
    TorchfabError
        There is no such runtime: the record was written by another version.
    """
    if name == "slurm":
        from torchfab.runtimes.slurm import runtime as slurm

        return slurm
    if name == "kubernetes":
        from torchfab.runtimes.kubernetes import runtime as kubernetes

        return kubernetes
    raise TorchfabError(f"there is no runtime {name!r}", "use the torchfab that launched the job")

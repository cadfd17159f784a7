"""Runtimes: the systems that run a job, and how to query and stop it there. They are independent of launchers.

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
        Time that the slowest rank that ended by itself took, in seconds.
    unfinished_ranks : int
        Number of killed ranks whose signal handler was still running.
    writing : tuple of str
        The files that these ranks had open for writing.
    proof : str
        The source that confirms that no process is left: "cgroup", "proc", "slurm", "kubernetes"; empty: unknown.
    cleared_files, cleared_bytes, cleared_folders : int
        Number of files in shared memory that the job left behind and that were removed, their size, and the number of
        removed temporary folders.
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

    def find_changed(
        self, requests: Mapping[int, Mapping[str, Any]]
    ) -> Mapping[Node, CheckpointAnswer | TorchfabError]:
        """Find the files that have changed on each host.

        Parameters
        ----------
        requests : Mapping of int to Mapping
            `folders`, `since`, `busy` by node rank, as `torchfab.remote.job.checkpoint_files.find_changed` takes them.

        Returns
        -------
        Mapping of Node to CheckpointAnswer or TorchfabError
            The changed files, or why the host did not report them.
        """

    def close(self) -> None:
        """Close the connections."""


class Runtime(Protocol):
    """The operations that every runtime has on its jobs."""

    @property
    def NAME(self) -> str:  # noqa: N802  # a constant of the module
        """Name of the runtime, as in the record."""

    def status(self, record: Record) -> JobStatus:
        """Query the status of the job on each of its nodes.

        Parameters
        ----------
        record : Record
            The job.

        Returns
        -------
        JobStatus
            A node without an answer is `unreachable`.
        """

    def follow(self, record: Record, request: Mapping[str, Any], nodes: Sequence[Node] | None = None) -> EventStream:
        """Yield the log lines of the job, and its end on each node.

        Parameters
        ----------
        record : Record
            The job.
        request : Mapping
            `follow` (bool), `lines` (int or None for all), `ranks` (list of int or None), `grep` (str or None).
        nodes : sequence of Node, optional
            Follow these nodes only. Default: all.

        Returns
        -------
        iterator of Event
            Ends when the job has ended, or without `follow` when the existing lines are read.
        """

    def evidence(self, record: Record) -> Evidence:
        """Collect the evidence of why the job ended.

        Parameters
        ----------
        record : Record
            The job.

        Returns
        -------
        Evidence
            Logs, error files and status by node.
        """

    def stacks(self, record: Record, request: Mapping[str, Any]) -> StackDump:
        """Collect the stacks of all ranks.

        Parameters
        ----------
        record : Record
            The job.
        request : Mapping
            `ranks`, `native`, `timeout_s`, `signal`: as `torchfab.remote.stacks.dump.answer` takes them.

        Returns
        -------
        StackDump
            The stacks by node, and the errors of the nodes that did not answer.

        Raises
        ------
        TorchfabError
            The runtime cannot inspect its processes.
        """

    def profile(self, record: Record, ranks: Sequence[int] | None, seconds: float, folder: Path) -> JobProfile:
        """Profile ranks at one instant, and put their traces into a folder.

        Raises
        ------
        TorchfabError
            The runtime's ranks have no probes.
        """

    def stop(self, record: Record, grace_s: float, nodes: Sequence[Node] | None = None) -> tuple[StopReport, ...]:
        """Stop the job: SIGTERM, after `grace_s` seconds SIGKILL, then a check that no process is left.

        Parameters
        ----------
        record : Record
            The job.
        grace_s : float
            Seconds between SIGTERM and SIGKILL.
        nodes : sequence of Node, optional
            Stop it on these nodes only. Default: all.

        Returns
        -------
        tuple of StopReport
            One for each node.
        """

    def signal(self, record: Record, name: str, ranks: Sequence[int] | None) -> tuple[SignalReport, ...]:
        """Send a signal once to each running rank; to none if it would end one, or if a node does not answer.

        Parameters
        ----------
        record : Record
            The job.
        name : str
            Its name: `SIGUSR1`.
        ranks : sequence of int, optional
            Which ranks. None: all.

        Returns
        -------
        tuple of SignalReport
            One for each node.

        Raises
        ------
        TorchfabError
            The runtime cannot signal its processes.
        """

    def watch_checkpoints(self, record: Record) -> CheckpointWatch:
        """Open connections to the hosts that see the files of the job's checkpoints.

        Parameters
        ----------
        record : Record
            The job.

        Returns
        -------
        CheckpointWatch
            The caller closes it.

        Raises
        ------
        TorchfabError
            The runtime cannot read the job's files.
        """

    def attach_argv(self, record: Record, node: Node, window: str) -> tuple[str, ...]:
        """Return the command that opens a terminal on a process of the job.

        Parameters
        ----------
        record : Record
            The job.
        node : Node
            The node.
        window : str
            Name of the tmux window; empty: the current one.

        Returns
        -------
        tuple of str
            The command.
        """

    def forget(self, record: Record) -> dict[str, TorchfabError]:
        """Remove the job's folders from its nodes.

        Parameters
        ----------
        record : Record
            The job; it has ended.

        Returns
        -------
        dict of str to TorchfabError
            Errors by host; empty if all folders are removed.
        """

    def machines(self, record: Record) -> list[tuple[Node, Mapping[str, Any] | None]]:
        """Return the machines of the job.

        Parameters
        ----------
        record : Record
            The job.

        Returns
        -------
        list of tuple
            Node, and the fields that identify the job in requests to it (None: the node cannot be queried for the job).

        Raises
        ------
        TorchfabError
            SSH does not reach them, or they are not known.
        """


class BatchRuntime(Runtime, Protocol):
    """A runtime that submits jobs to a cluster's own scheduler."""

    def submit(self, record: Record, submission: Submission) -> dict[str, Any]:
        """Submit the job.

        Parameters
        ----------
        record : Record
            The job.
        submission : Submission
            The rendered job and its options.

        Returns
        -------
        dict
            Details for the record, such as the scheduler's id of the job.

        Raises
        ------
        TorchfabError
            The scheduler rejected the job, or the submission was rolled back.
        """


def load(name: str) -> Runtime:
    """Return a runtime by its name. Its module is imported only when a job needs it.

    Parameters
    ----------
    name : str
        Its name: `tmux`.

    Returns
    -------
    module

    Raises
    ------
    TorchfabError
        There is no such runtime: the record was written by another version.
    """
    if name == "tmux":
        from torchfab.runtimes import tmux

        return tmux
    return load_batch(name)


def load_batch(name: str) -> BatchRuntime:
    """Return the runtime of a scheduler by its name.

    Parameters
    ----------
    name : str
        Its name: `slurm`.

    Returns
    -------
    module

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

"""The values that the API returns, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchfab.core import status
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.log_lines import Line
from torchfab.core.status import JobStatus, State
from torchfab.records import Record
from torchfab.supervise.stopping import StopOutcome

if TYPE_CHECKING:
    from torchfab.why.diagnosis import Diagnosis


@dataclass(frozen=True)
class LogLine:
    """One line of a job's logs.

    Parameters
    ----------
    host : str
        The node that wrote it, as the hosts file names it.
    rank : int, optional
        The rank that wrote it; None for a process that is not a rank, such as torchrun.
    label : str
        The rank as text, or the name of the process: `agent`.
    time : float
        When it was written, by the node's clock, in seconds since the epoch.
    text : str
        The line without its line end; it may contain control characters.
    """

    host: str
    rank: int | None
    label: str
    time: float
    text: str

    def __str__(self) -> str:
        return f"{self.host} [{self.label}] {self.text}"

    @classmethod
    def of(cls, line: Line) -> LogLine:
        """Return a log line for the user of the API.

        Parameters
        ----------
        line : Line
            As the nodes sent it.

        Returns
        -------
        LogLine
        """
        rank = line.label if isinstance(line.label, int) else None
        return cls(line.host, rank, str(line.label), line.time, line.text)


@dataclass(frozen=True)
class RankStatus:
    """The state of one rank.

    Parameters
    ----------
    rank, local_rank : int, optional
        None if not known yet.
    pid : int, optional
        Pid of its process; None if only its pod is known.
    exit_code : int, optional
        -n for signal n; None while it runs, or if it was not recorded.
    """

    rank: int | None
    local_rank: int | None
    pid: int | None
    exit_code: int | None


@dataclass(frozen=True)
class NodeStatus:
    """The state of a job on one node.

    Parameters
    ----------
    host : str
        As the hosts file names it.
    node_rank : int
        From 0.
    state : State
        Of this node.
    reason : str
        Reason for the state; empty if there is none.
    ranks : tuple of RankStatus
        The ranks there that have started.
    last_line : str
        The last log line; empty before the first.
    """

    host: str
    node_rank: int
    state: State
    reason: str
    ranks: tuple[RankStatus, ...]
    last_line: str


@dataclass(frozen=True)
class FirstFailure:
    """The rank, or another process, that failed first.

    Parameters
    ----------
    host : str
        The node.
    rank : int, optional
        None for a process that is not a rank.
    exit_code : int
        -n for signal n.
    time : float
        When it ended, by this machine's clock, in seconds since the epoch.
    text : str
        As `fab status` prints it.
    """

    host: str
    rank: int | None
    exit_code: int
    time: float
    text: str


@dataclass(frozen=True)
class Status:
    """The state of a job.

    Parameters
    ----------
    job : str
        Its name.
    state : State
        The state; it can be compared with a string: `status.state == "running"`.
    ended : bool
        Whether no process of the job runs any more.
    exit_code : int, optional
        0, or the exit code of the rank that failed first; None while the job runs.
    reason : str
        Why the job is pending, or why a scheduler ended it; otherwise empty.
    first_failure : FirstFailure, optional
        None if nothing failed.
    nodes : tuple of NodeStatus
        In the order of node ranks; empty while a scheduler has not allocated any.
    """

    job: str
    state: State
    ended: bool
    exit_code: int | None
    reason: str
    first_failure: FirstFailure | None
    nodes: tuple[NodeStatus, ...]

    @property
    def ok(self) -> bool:
        """Whether the job has succeeded."""
        return self.state is State.SUCCEEDED

    @classmethod
    def of(cls, name: str, found: JobStatus) -> Status:
        """Return the status of a job for the user of the API.

        Parameters
        ----------
        name : str
            The job's name.
        found : JobStatus
            Its status.

        Returns
        -------
        Status
        """
        first = found.first_failure
        return cls(
            job=name,
            state=found.state,
            ended=found.has_ended,
            exit_code=found.exit_code,
            reason=found.reason,
            first_failure=FirstFailure(first.host, first.rank, first.code, first.time, str(first)) if first else None,
            nodes=tuple(map(_node_status, found.nodes)),
        )


def _node_status(found: status.NodeStatus) -> NodeStatus:
    ranks = tuple(RankStatus(each.rank, each.local_rank, each.pid, each.code) for each in found.ranks)
    last = found.last_line.text if found.last_line else ""
    return NodeStatus(found.node.label, found.node.rank, found.state, found.reason, ranks, last)


@dataclass(frozen=True)
class Why:
    """Why a job ended, or its current state. `str(why)` is the report of `fab why`.

    Parameters
    ----------
    job : str
        Its name.
    state : str
        Its state.
    kind : str
        Kind of the cause: `script`, `node`, `stopped`, `succeeded`, `running`, and others.
    cause : str
        The cause, as human-readable text.
    fix : str
        What to do; empty if unknown.
    certainty : str
        `certain`, `probable`, `possible`; empty if nothing failed.
    host : str
        The node of the first failure; empty if nothing failed.
    rank : int, optional
        The rank that failed first; None if another process failed first, or nothing failed.
    traceback : str
        The traceback of the first failure; empty if there is none.
    details : Mapping of str to Any
        The whole diagnosis, as `fab why --json` prints it.
    """

    job: str
    state: str
    kind: str
    cause: str
    fix: str
    certainty: str
    host: str
    rank: int | None
    traceback: str
    details: Mapping[str, Any] = field(repr=False)
    text: str = field(repr=False)

    def __str__(self) -> str:
        return self.text

    @classmethod
    def of(cls, found: Diagnosis) -> Why:
        """Return a diagnosis for the user of the API.

        Parameters
        ----------
        found : Diagnosis
            Of a job.

        Returns
        -------
        Why
        """
        from torchfab.why import report

        first = found.first
        return cls(
            job=found.job,
            state=str(found.state),
            kind=found.cause.kind.name.lower(),
            cause=found.cause.words,
            fix=found.cause.fix,
            certainty=found.certainty,
            host=first.host if first else "",
            rank=first.rank if first else None,
            traceback=found.traceback.text if found.traceback else "",
            details=report.as_json(found),
            text=report.render(found),
        )


@dataclass(frozen=True)
class Stopped:
    """How a job was stopped: no process of it is left on any node.

    Parameters
    ----------
    job : str
        Its name.
    state : State
        Its state afterwards: `stopped`, or its earlier final state.
    hosts : tuple of str
        Its nodes.
    ended_ranks, killed_ranks : int
        Number of ranks that ended by themselves, and of those that were killed after the grace period.
    """

    job: str
    state: State
    hosts: tuple[str, ...]
    ended_ranks: int
    killed_ranks: int

    @classmethod
    def of(cls, outcome: StopOutcome, found: JobStatus) -> Stopped:
        """Return the outcome of a stop for the user of the API.

        Parameters
        ----------
        outcome : StopOutcome
            What was done on each node.
        found : JobStatus
            The status of the job afterwards.

        Returns
        -------
        Stopped
        """
        return cls(
            outcome.record.name,
            found.state,
            tuple(report.node.label for report in outcome.reports),
            sum(report.ended_ranks for report in outcome.reports),
            sum(report.killed_ranks for report in outcome.reports),
        )


@dataclass(frozen=True)
class JobInfo:
    """A job that was launched from here, as `fab jobs` lists it.

    Parameters
    ----------
    name, job_id : str
        Its name, and the id that all its processes carry as TORCHFAB_JOB_ID.
    state : State
        As last seen.
    exit_code : int, optional
        None while it runs.
    ended : bool
        Whether no process of it runs any more.
    launcher : str
        Name of its launcher.
    hosts : tuple of str
        Its nodes; empty while a scheduler has not allocated any.
    world_size : int
        Number of ranks.
    created : float
        When it was launched, in seconds since the epoch.
    script : tuple of str
        The script and its arguments.
    folder : Path
        The folder of its record on this machine.
    """

    name: str
    job_id: str
    state: State
    exit_code: int | None
    ended: bool
    launcher: str
    hosts: tuple[str, ...]
    world_size: int
    created: float
    script: tuple[str, ...]
    folder: Path

    @classmethod
    def of(cls, record: Record) -> JobInfo:
        """Return the job of a record.

        Parameters
        ----------
        record : Record
            The job.

        Returns
        -------
        JobInfo
        """
        last = record.last_seen()
        return cls(
            name=record.name,
            job_id=record.job_id,
            state=State(last["state"]),
            exit_code=last["code"],
            ended=last["ended"],
            launcher=record.launcher,
            hosts=tuple(node.label for node in record.nodes),
            world_size=record.world_size,
            created=record.created,
            script=record.script,
            folder=record.folder,
        )

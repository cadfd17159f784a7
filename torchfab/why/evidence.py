"""Evidence of how a job went: frozen values, the same for every runtime. All times are on this machine's clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus

Label = int | str


@dataclass(frozen=True)
class Log:
    """The end of a log file.

    Parameters
    ----------
    label : int or str
        The rank that wrote it, `agent` for the launcher, or `local N`.
    path : str
        Path on the node.
    text : str
        The last part of the file.
    written : float
        Modification time, in seconds since the epoch.
    """

    label: Label
    path: str
    text: str
    written: float


@dataclass(frozen=True)
class Report:
    """An error file, as torchelastic's `record` writes it.

    Parameters
    ----------
    label : int or str
        The rank that wrote it, or `local N`.
    attempt : int
        Restart count of torchrun when it was written.
    message, traceback : str
        The exception, and its traceback; empty if there is none.
    """

    label: Label
    attempt: int
    message: str
    traceback: str


@dataclass(frozen=True)
class KernelLine:
    """One line of a node's kernel log; `time` is in seconds since the epoch."""

    time: float
    text: str


@dataclass(frozen=True)
class Disk:
    """The file system that holds a path.

    Parameters
    ----------
    path : str
        The path that was queried.
    free, size : int
        Bytes available to this user, and total bytes.
    """

    path: str
    free: int
    size: int


@dataclass(frozen=True)
class SchedulerReason:
    """The reason that a scheduler reports for the end of a job, or of one of its nodes.

    Parameters
    ----------
    reason : str
        The scheduler's own name: OUT_OF_MEMORY, OOMKilled, Evicted.
    words : str
        Human-readable description.
    host : str
        The node; empty for the whole job.
    time : float
        In seconds since the epoch; 0 if unknown.
    """

    reason: str
    words: str
    host: str = ""
    time: float = 0.0


@dataclass(frozen=True)
class RankEnd:
    """How a rank, or a process that is not a rank, ended.

    Parameters
    ----------
    rank : int, optional
        None for a process that is not a rank.
    pid : int, optional
        None if it is not known.
    code : int, optional
        Exit code, negative for a signal; None if it was not recorded.
    started, ended : float, optional
        By the node's clock, in seconds since the epoch.
    attempt : int, optional
        Restart count of the launcher; None if it is not known.
    """

    rank: int | None
    pid: int | None
    code: int | None
    started: float | None = None
    ended: float | None = None
    attempt: int | None = None


@dataclass(frozen=True)
class NodeEvidence:
    """The evidence collected from one node.

    Parameters
    ----------
    status : NodeStatus
        As `fab status` reports it.
    logs, reports : tuples
        The last part of each log file (of ranks: of the last attempt), and its error files.
    exit_records : Mapping of str to Mapping
        Process name -> the record that its supervisor wrote when it ended: `asked`, `killed`, `left`, `oom_kills`.
    kernel : tuple of KernelLine
        The kernel log since the job started.
    kernel_unread : str
        Why the kernel log could not be read; empty if it was read.
    disks : tuple of Disk
        Disk usage at the time of the query.
    halted : tuple of str
        Processes that are stopped by a signal (SIGSTOP) at the time of the query: `rank 3`, `agent`.
    """

    status: NodeStatus
    logs: tuple[Log, ...] = ()
    reports: tuple[Report, ...] = ()
    exit_records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    kernel: tuple[KernelLine, ...] = ()
    kernel_unread: str = ""
    disks: tuple[Disk, ...] = ()
    halted: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        """The human-readable name of the node."""
        return self.status.node.label


@dataclass(frozen=True)
class Evidence:
    """All evidence of how a job went.

    Parameters
    ----------
    job : str
        Name of the job.
    created : float
        When it was launched, in seconds since the epoch.
    status : JobStatus
        As `fab status` reports it.
    nodes : tuple of NodeEvidence
        In the order of node ranks.
    scheduler_reasons : tuple of SchedulerReason
        Reasons that a scheduler reports.
    events : tuple of Mapping
        Events that this launch machine recorded for the job: `time`, `event`, and more.
    batch_output : str
        The last part of the output of Slurm's batch script.
    """

    job: str
    created: float
    status: JobStatus
    nodes: tuple[NodeEvidence, ...]
    scheduler_reasons: tuple[SchedulerReason, ...] = ()
    events: tuple[Mapping[str, Any], ...] = ()
    batch_output: str = ""

    @property
    def unreachable(self) -> dict[str, str]:
        """The hosts (or the scheduler) that could not be queried, with the reason."""
        if self.status.verdict and self.status.verdict.state == "unreachable":
            return {"the scheduler": self.status.reason}
        return {each.host: each.status.reason for each in self.nodes if each.status.state == "unreachable"}


def evidence_from_report(status: NodeStatus, report: Mapping[str, Any]) -> NodeEvidence:
    """Combine a node's status and the evidence that was collected there.

    Parameters
    ----------
    status : NodeStatus
        Of the node, with the skew of its clock.
    report : Mapping
        The `evidence` field of the node's answer; empty if the node was not queried.

    Returns
    -------
    NodeEvidence
        With all times on this machine's clock.
    """
    kernel = report.get("kernel") or {"unread": "the node itself was not asked"}
    return NodeEvidence(
        status,
        tuple(
            Log(each["label"], each["path"], each["text"], each["written"] - status.skew_s)
            for each in report.get("logs", ())
        ),
        tuple(Report(**each) for each in report.get("reports", ())),
        report.get("ends", {}),
        tuple(KernelLine(when - status.skew_s, text) for when, text in kernel.get("lines", ())),
        kernel.get("unread", ""),
        tuple(Disk(**each) for each in report.get("disks", ()) if each["free"] is not None),
        tuple(report.get("halted", ())),
    )


def in_rank_order(nodes: Sequence[Node], found: Mapping[int, NodeEvidence]) -> tuple[NodeEvidence, ...]:
    """Return the evidence of the nodes in the order of their node ranks.

    Parameters
    ----------
    nodes : sequence of Node
        In that order.
    found : Mapping of int to NodeEvidence
        By node rank; nodes that are not in it are left out.

    Returns
    -------
    tuple of NodeEvidence
        In the order of `nodes`.
    """
    return tuple(found[node.rank] for node in nodes if node.rank in found)

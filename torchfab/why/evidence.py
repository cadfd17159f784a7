"""Evidence of how a job went: frozen values, the same for every runtime. All times are on this machine's clock."""

from __future__ import annotations

import bisect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from torchfab.collectives.model import RankHistory, Snapshot, history_from_report
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus
from torchfab.why.traceback_layouts import message_of

Label = int | str
_NEARLY_FULL_BYTES = 64 * 1024 * 1024
_MAX_JOB_BYTES, _MIN_NODE_BYTES, _MAX_NODE_BYTES = 16 * 1024 * 1024, 64 * 1024, 512 * 1024
_SEARCH_S = 8.0


@dataclass(frozen=True)
class Log:
    """A log file: its end, and the matches in the whole file.

    Parameters
    ----------
    label : int or str
        The rank that wrote it, `agent` for the launcher, or `local N`.
    path : str
        Path on the node.
    text : str
        The matches with surrounding lines, and the end; a blank line marks omitted parts.
    written : float
        Modification time, in seconds since the epoch.
    times : tuple of (int, float)
        Pairs of a line number of `text` and the time at which the lines from there on were written.
    numbers : tuple of (int, int)
        Pairs of a line number of `text` and the number in the file, from 1, of the lines from there on.
    unsearched, unsearched_from : int
        Bytes of the file that were not searched, for lack of time, and how many are before them.
    """

    label: Label
    path: str
    text: str
    written: float
    times: tuple[tuple[int, float], ...] = ()
    numbers: tuple[tuple[int, int], ...] = ()
    unsearched: int = 0
    unsearched_from: int = 0

    def time_of(self, line: int) -> float:
        """Return when a line was written.

        Parameters
        ----------
        line : int
            Its number in `text`, from 0.

        Returns
        -------
        float
            In seconds since the epoch; the modification time of the file if nothing closer is known.
        """
        at = bisect.bisect_right(self.times, (line, float("inf"))) - 1
        return self.times[at][1] if at >= 0 else self.written

    def number_of(self, line: int) -> int:
        """Return the number of a line in the file.

        Parameters
        ----------
        line : int
            Its number in `text`, from 0.

        Returns
        -------
        int
            From 1; 0 if unknown.
        """
        at = bisect.bisect_right(self.numbers, (line, sys.maxsize)) - 1
        begin, number = self.numbers[at] if at >= 0 else (0, 0)
        return number + line - begin if number else 0


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
    free_files : int
        Free inodes; -1 if the file system does not count them.
    read_only : bool
        Whether it is mounted read-only.
    """

    path: str
    free: int
    size: int
    free_files: int = -1
    read_only: bool = False

    @property
    def is_full(self) -> bool:
        """Whether nothing more can be written: no bytes or no inodes are free."""
        few = self.free < _NEARLY_FULL_BYTES and self.free * 20 < self.size
        return self.size > 0 and (few or self.free_files == 0)


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
        None if unknown.
    code : int, optional
        Exit code, negative for a signal; None if it was not recorded.
    started, ended : float, optional
        By the node's clock, in seconds since the epoch.
    attempt : int, optional
        Restart count of the launcher; None if unknown.
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
    gpus : int, optional
        Number of GPUs that the driver has there; None if unknown.
    boot_id : str
        Identifies the machine while it is up; empty if unknown.
    collectives : tuple of RankHistory
        The collectives of its ranks: at the time of the query, or before they ended.
    """

    status: NodeStatus
    logs: tuple[Log, ...] = ()
    reports: tuple[Report, ...] = ()
    exit_records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    kernel: tuple[KernelLine, ...] = ()
    kernel_unread: str = ""
    disks: tuple[Disk, ...] = ()
    halted: tuple[str, ...] = ()
    gpus: int | None = None
    boot_id: str = ""
    collectives: tuple[RankHistory, ...] = ()

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
    world_size : int
        Number of its ranks; 0 if unknown or variable.
    """

    job: str
    created: float
    status: JobStatus
    nodes: tuple[NodeEvidence, ...]
    scheduler_reasons: tuple[SchedulerReason, ...] = ()
    events: tuple[Mapping[str, Any], ...] = ()
    batch_output: str = ""
    world_size: int = 0

    @property
    def collectives(self) -> Snapshot:
        """The collectives of the ranks whose nodes know them."""
        return Snapshot({each.rank: each for node in self.nodes for each in node.collectives})

    @property
    def unreachable(self) -> dict[str, str]:
        """The hosts (or the scheduler) that could not be queried, with the reason."""
        if self.status.verdict and self.status.verdict.state == "unreachable":
            return {"the scheduler": self.status.reason}
        return {each.host: each.status.reason for each in self.nodes if each.status.state == "unreachable"}


def search_limits(nodes: int, timeout_s: float) -> dict[str, Any]:
    """Return the limits on the log text that a node returns, and on the time for its search.

    Parameters
    ----------
    nodes : int
        Number of nodes: this machine holds the answers of all nodes in memory.
    timeout_s : float
        How long this machine waits for the answer, in seconds.

    Returns
    -------
    dict
        `max_bytes` and `search_s` of a request for evidence.
    """
    max_bytes = min(_MAX_NODE_BYTES, max(_MIN_NODE_BYTES, _MAX_JOB_BYTES // max(1, nodes)))
    return {"max_bytes": max_bytes, "search_s": min(_SEARCH_S, timeout_s / 2)}


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
    kernel = report.get("kernel") or {"unread": "the node itself was not queried"}
    return NodeEvidence(
        status,
        tuple(_log(each, status.skew_s) for each in report.get("logs", ())),
        tuple(Report(**each) for each in report.get("reports", ())),
        report.get("ends", {}),
        tuple(KernelLine(when - status.skew_s, text) for when, text in kernel.get("lines", ())),
        kernel.get("unread", ""),
        tuple(_disk(each) for each in report.get("disks", ()) if each["free"] is not None),
        tuple(report.get("halted", ())),
        report.get("gpus"),
        report.get("boot_id", ""),
        tuple(history_from_report(status.node.label, each) for each in report.get("collectives", ())),
    )


def _log(each: Mapping[str, Any], skew_s: float) -> Log:
    """Return a log of a node's answer; its parts are joined by blank lines."""
    parts = each.get("parts") or [{"text": each.get("text", ""), "time": each["written"]}]
    lines: list[str] = []
    times, numbers = [], []
    for part in parts:
        if part.get("gap") and lines:
            lines.append("")
        times.append((len(lines), part["time"] - skew_s))
        numbers.append((len(lines), part.get("line", 0)))
        lines += [message_of(line) for line in part["text"].splitlines()]
    text, written = "\n".join(lines), each["written"] - skew_s
    unsearched = each.get("unsearched", 0), each.get("unsearched_from", 0)
    return Log(each["label"], each["path"], text, written, tuple(times), tuple(numbers), *unsearched)


def _disk(each: Mapping[str, Any]) -> Disk:
    free_files = each.get("free_files")
    files = -1 if free_files is None else int(free_files)
    return Disk(each["path"], each["free"], each["size"], files, bool(each.get("read_only")))


def in_rank_order(nodes: Sequence[Node], found: Mapping[int, NodeEvidence]) -> tuple[NodeEvidence, ...]:
    """Return the evidence of the nodes in the order of their node ranks.

    Parameters
    ----------
    nodes : sequence of Node
        In that order.
    found : Mapping of int to NodeEvidence
        By node rank; nodes without evidence are omitted.

    Returns
    -------
    tuple of NodeEvidence
        In the order of `nodes`.
    """
    return tuple(found[node.rank] for node in nodes if node.rank in found)

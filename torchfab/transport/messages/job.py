"""Messages about a job on a node: status, logs, stop, forget, and the evidence of why it ended."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeAlias

from msgspec import Struct

from torchfab.core.bounded_types import Count, Label, Number, Time, Whole
from torchfab.core.status import StatusReport
from torchfab.transport.messages import AnswerType, Done, Problem, Request
from torchfab.transport.messages.collectives import RankCollectives
from torchfab.transport.messages.launch import StopReport

LogLine: TypeAlias = tuple[Label, Time, str]  # label, time in seconds since the epoch, text


class JobRequest(Request[AnswerType], Generic[AnswerType], frozen=True, kw_only=True):
    """A request about a job on a node.

    Parameters
    ----------
    job_id, session : str
        Its id, and the name of its tmux session there.
    node_dir : str
        Folder of all jobs on the node.
    node_rank : int
        Rank of the node in the job.
    mask_key : str
        Key of the digests by which the node redacts the job's secrets.
    """

    job_id: str
    node_dir: str
    node_rank: int
    mask_key: str
    session: str


class StatusRequest(JobRequest[StatusReport], frozen=True, tag="status"):
    """Get the status of a job on a node."""

    ANSWER = StatusReport


class EndRanksAnswer(Struct, frozen=True):
    """How many processes of the job ran on the node."""

    asked: Number


class EndRanksRequest(JobRequest[EndRanksAnswer], frozen=True, tag="end_ranks"):
    """End the ranks of a job on a node within `grace_s` seconds, but not their launchers."""

    grace_s: float
    ANSWER = EndRanksAnswer


class StopAnswer(StopReport, frozen=True, kw_only=True):
    """How a job was stopped, and its status afterwards."""

    status: StatusReport


class StopRequest(JobRequest[StopAnswer], frozen=True, tag="stop"):
    """Stop a job on a node: SIGTERM, `grace_s` seconds, SIGKILL."""

    grace_s: float
    ANSWER = StopAnswer


class SignalledRank(Struct, frozen=True, kw_only=True):
    """What a signal does to a rank, and whether it was sent; see `torchfab.remote.job.rank_signals`."""

    rank: Whole | None
    pid: Whole
    effect: Literal["handled", "ignored", "ends"]
    sent: bool


class SignalAnswer(Struct, frozen=True, kw_only=True):
    """The running ranks on the node that were selected."""

    ranks: list[SignalledRank]


class SignalRequest(JobRequest[SignalAnswer], frozen=True, tag="signal"):
    """Signal ranks on a node; see `torchfab.remote.job.rank_signals.signal_ranks`.

    Parameters
    ----------
    send : bool
        False: only report the effect that the signal would have.
    """

    signal: str
    ranks: list[int] | None
    send: bool
    ANSWER = SignalAnswer


class CheckpointFile(Struct, frozen=True, kw_only=True):
    """A file that has changed; see `torchfab.remote.job.checkpoint_files.find_changed`."""

    path: str
    root: str
    size: Number
    changed: Time
    whole: bool


class CheckpointAnswer(Struct, frozen=True, kw_only=True):
    """The changed files of checkpoints on a node; see `torchfab.remote.job.checkpoint_files.find_changed`."""

    cwd: str
    running: Count
    step: Whole | None = None
    clocks: dict[str, Time] = {}
    busy: list[str] = []
    files: list[CheckpointFile] = []


class CheckpointRequest(JobRequest[CheckpointAnswer], frozen=True, tag="checkpoint"):
    """Find the changed files of checkpoints; see `torchfab.remote.job.checkpoint_files.find_changed`."""

    folders: list[str]
    since: dict[str, float]
    busy: list[str]
    ANSWER = CheckpointAnswer


class ForgetRequest(JobRequest[Done], frozen=True, tag="forget"):
    """Remove a job's folder from a node."""

    ANSWER = Done


class LogsFrame(Struct, frozen=True, kw_only=True):
    """A frame of the logs of a job on a node.

    Parameters
    ----------
    lines : list of LogLine
        New lines, in the order in which they were written.
    offsets : dict, optional
        The offset up to which each file is read; it is sent back when the stream is opened again.
    past : bool
        Whether all lines that existed when the stream was opened have been sent.
    failed : StatusReport, optional
        The status, if a process has failed there while others run.
    end : StatusReport, optional
        The status, if the job has ended there or all existing lines are read.
    problems : list of Problem
        Why the stream ended.
    """

    lines: list[LogLine] = []
    offsets: dict[str, Any] | None = None
    past: bool = False
    failed: StatusReport | None = None
    end: StatusReport | None = None
    problems: list[Problem] = []


class LogsRequest(JobRequest[LogsFrame], frozen=True, tag="logs"):
    """Stream the logs of a job on a node.

    Parameters
    ----------
    follow : bool
        Whether to continue until the job has ended there.
    lines : int, optional
        Only the last lines of each file. None: all.
    ranks : list of int, optional
        Only these ranks. None: all.
    grep : str, optional
        Only lines that match this regular expression. None: all.
    offsets : dict, optional
        The offsets up to which the files were read before. Default: none.
    """

    follow: bool
    lines: int | None
    ranks: list[int] | None
    grep: str | None
    offsets: dict[str, Any] | None = None
    ANSWER = LogsFrame


class LogPart(Struct, frozen=True, kw_only=True):
    """A piece of a log file.

    Parameters
    ----------
    text : str
        Whole lines.
    time : float
        When they were written, by the node's clock, in seconds since the epoch.
    line : int
        The number of the first one in the file; 0 if it was not counted.
    gap : bool
        Whether text before it is left out.
    """

    text: str
    time: Time
    line: Whole = 0
    gap: bool = False


class LogTail(Struct, frozen=True, kw_only=True):
    """The relevant parts of a log file, and its end: in parts, or as one text without times.

    `unsearched` is the number of bytes, after the first `unsearched_from`, that were left out for lack of time.
    """

    label: Label
    path: str
    written: Time
    parts: list[LogPart] = []
    text: str = ""
    unsearched: Whole = 0
    unsearched_from: Whole = 0


class ErrorReport(Struct, frozen=True, kw_only=True):
    """An error file of a rank, as torchelastic's `record` writes it."""

    label: Label
    attempt: Whole
    message: str
    traceback: str


class ExitRecord(Struct, frozen=True, kw_only=True):
    """The record that a supervisor wrote at the end of its process.

    Parameters
    ----------
    asked : str, optional
        Name of the signal that the supervisor got.
    killed, left : list of str
        Processes that it had to kill, and processes that still ran.
    error : str, optional
        Why the process was not started.
    oom_kills : int
        How often the kernel killed a process in its control group for lack of memory.
    peers : list of (int, str)
        Ranks that the supervisor ended although no end was requested: pid, and reason (`torchfab.remote.job.peer_end`).
    """

    asked: str | None = None
    killed: list[str] = []
    left: list[str] = []
    error: str | None = None
    oom_kills: Number = 0
    peers: list[tuple[Whole, str]] = []


class KernelLog(Struct, frozen=True, kw_only=True):
    """Lines of the kernel's log since the job started, or why it cannot be read."""

    lines: list[tuple[Time, str]] = []
    unread: str = ""


class DiskSpace(Struct, frozen=True, kw_only=True):
    """Space of the file system that holds a path, in bytes; None if it cannot be determined."""

    path: str
    free: Number | None
    size: Number | None
    free_files: Number | None = None
    read_only: bool = False


class JobEvidence(Struct, frozen=True, kw_only=True):
    """The evidence in a job's folder about the end of the job."""

    logs: list[LogTail] = []
    reports: list[ErrorReport] = []
    ends: dict[str, ExitRecord] = {}


class NodeEvidence(JobEvidence, frozen=True, kw_only=True):
    """The evidence in the job's folder, and that of the node itself."""

    kernel: KernelLog = KernelLog(unread="the node itself was not queried")
    disks: list[DiskSpace] = []
    halted: list[str] = []
    gpus: Whole | None = None
    boot_id: str = ""
    collectives: list[RankCollectives] = []


class EvidenceAnswer(StatusReport, frozen=True, kw_only=True):
    """The status of a job on a node, and the evidence of why it ended."""

    evidence: NodeEvidence


class EvidenceRequest(JobRequest[EvidenceAnswer], frozen=True, tag="evidence"):
    """Collect the evidence of why a job ended on a node.

    Parameters
    ----------
    max_bytes : int
        How many bytes of its logs to return.
    search_s : float
        How long to search them, in seconds.
    """

    max_bytes: int
    search_s: float
    ANSWER = EvidenceAnswer

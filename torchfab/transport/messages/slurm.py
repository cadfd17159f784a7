"""Messages about a Slurm job, for the machine on which Slurm's commands run."""

from __future__ import annotations

from typing import Annotated, Any, Generic

from msgspec import Meta, Struct

from torchfab.core.bounded_types import Count, Time, Whole
from torchfab.core.status import StatusReport
from torchfab.transport.messages import AnswerType, Done, Problem, Request
from torchfab.transport.messages.job import CheckpointAnswer, JobEvidence, LogLine, SignalAnswer
from torchfab.transport.messages.launch import StopReport
from torchfab.transport.messages.stacks import StacksAnswer


class SlurmJob(Struct, frozen=True, kw_only=True):
    """Slurm's record of a job; `state` is empty if Slurm has purged it.

    Parameters
    ----------
    error : str
        Why Slurm cannot be queried; empty if it can.
    why : str
        Its reason code.
    exit : str
        Exit code and signal as `code:signal`.
    limit, start : str
        Time limit, and expected start.
    """

    error: str = ""
    state: str = ""
    why: str = ""
    exit: str = ""
    limit: str = ""
    start: str = ""
    restarts: Whole = 0
    hosts: list[str] = []


class SlurmNode(Struct, frozen=True, kw_only=True):
    """A node of a Slurm job; its status is None if its folder is missing."""

    rank: Count
    host: str
    status: StatusReport | None


class SlurmStatus(Struct, frozen=True, kw_only=True):
    """The status of a Slurm job; see `torchfab.remote.slurm.job.status`."""

    slurm: SlurmJob
    nodes: list[SlurmNode]
    exists: bool
    stop_asked: Time | None
    said: str


class SlurmRequest(Request[AnswerType], Generic[AnswerType], frozen=True, kw_only=True):
    """A request about a Slurm job: its ids, its folder and the number of its nodes."""

    slurm_id: str
    folder: str
    mask_key: str
    job_id: str
    nodes: int


class SlurmSubmitAnswer(Struct, frozen=True):
    """Slurm's id of the job."""

    slurm_id: Annotated[str, Meta(pattern=r"^[0-9A-Za-z_.+-]{1,64}\Z")]


class SlurmSubmitRequest(Request[SlurmSubmitAnswer], frozen=True, tag="slurm_submit"):
    """Submit a job with sbatch; it is cancelled again unless a commit follows."""

    folder: str
    options: dict[str, Any] | list[Any]
    spec: dict[str, Any]
    workdir: str
    script: str | None
    python: str
    text: str
    secrets: dict[str, str]
    mask_key: str
    timeout_s: float
    patience_s: int
    ANSWER = SlurmSubmitAnswer


class SlurmStatusRequest(SlurmRequest[SlurmStatus], frozen=True, tag="slurm_status"):
    """Get the status of a Slurm job."""

    ANSWER = SlurmStatus


class SlurmEvidence(SlurmStatus, frozen=True, kw_only=True):
    """The status of a Slurm job, the evidence in each node's folder, and the output of the batch script."""

    evidence: list[JobEvidence]
    batch: str


class SlurmEvidenceRequest(SlurmRequest[SlurmEvidence], frozen=True, tag="slurm_evidence"):
    """Collect the evidence of why a Slurm job ended.

    Parameters
    ----------
    max_bytes : int
        How many bytes of the logs of each node to return.
    search_s : float
        How long to search the logs of all nodes together, in seconds.
    """

    max_bytes: int
    search_s: float
    ANSWER = SlurmEvidence


class SlurmStopAnswer(StopReport, frozen=True, kw_only=True):
    """How a Slurm job was stopped, and its state in Slurm before."""

    before: str


class SlurmStopRequest(SlurmRequest[SlurmStopAnswer], frozen=True, tag="slurm_stop"):
    """Stop a Slurm job: SIGTERM, `grace_s` seconds, scancel."""

    grace_s: float
    ANSWER = SlurmStopAnswer


class SlurmForgetRequest(SlurmRequest[Done], frozen=True, tag="slurm_forget"):
    """Remove the folder of a Slurm job."""

    ANSWER = Done


class SlurmNodeStacks(Struct, frozen=True, kw_only=True):
    """The stacks on a node of a Slurm job; None if it did not answer."""

    rank: Count
    host: str
    answer: StacksAnswer | None


class SlurmStacksAnswer(Struct, frozen=True, kw_only=True):
    """The stacks of a Slurm job's ranks; or, with `wants`, the request for py-spy."""

    nodes: list[SlurmNodeStacks] = []
    said: str = ""
    machine: str = ""
    wants: bool = False


class SlurmStacksRequest(SlurmRequest[SlurmStacksAnswer], frozen=True, tag="slurm_stacks"):
    """Get the stacks of a Slurm job's ranks; the fields are those of `StacksRequest`."""

    ranks: list[int] | None
    native: bool
    timeout_s: float
    signal: str
    program: str | None = None
    ANSWER = SlurmStacksAnswer


class SlurmNodeSignals(Struct, frozen=True, kw_only=True):
    """The signalled ranks on a node of a Slurm job; None if it did not answer."""

    rank: Count
    host: str
    answer: SignalAnswer | None


class SlurmSignalAnswer(Struct, frozen=True, kw_only=True):
    """The signalled ranks of a Slurm job, and the output of srun if it failed."""

    nodes: list[SlurmNodeSignals] = []
    said: str = ""


class SlurmSignalRequest(SlurmRequest[SlurmSignalAnswer], frozen=True, tag="slurm_signal"):
    """Signal the ranks of a Slurm job; the fields are those of `SignalRequest`."""

    signal: str
    ranks: list[int] | None
    send: bool
    ANSWER = SlurmSignalAnswer


class SlurmCheckpointRequest(SlurmRequest[CheckpointAnswer], frozen=True, tag="slurm_checkpoint"):
    """Find the changed files of a Slurm job's checkpoints; the fields are those of `CheckpointRequest`."""

    folders: list[str]
    since: dict[str, float]
    busy: list[str]
    ANSWER = CheckpointAnswer


class SlurmLogsFrame(Struct, frozen=True, kw_only=True):
    """A frame of the logs of a Slurm job; as `LogsFrame`, with the node's rank and Slurm's status."""

    lines: list[LogLine] = []
    node: Count = 0
    offsets: dict[str, Any] | None = None
    past: bool = False
    seen: SlurmStatus | None = None
    end: SlurmStatus | None = None
    problems: list[Problem] = []


class SlurmLogsRequest(SlurmRequest[SlurmLogsFrame], frozen=True, tag="slurm_logs"):
    """Stream the logs of a Slurm job; the fields are those of `LogsRequest`."""

    follow: bool
    lines: int | None
    ranks: list[int] | None
    grep: str | None
    offsets: dict[str, Any] | None = None
    ANSWER = SlurmLogsFrame

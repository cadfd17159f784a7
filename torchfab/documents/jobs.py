"""The documents of jobs: `jobs`, `jobs --events`, `status`, `why`, `stacks` and `profile`."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from msgspec import Struct

from torchfab.core.status import State
from torchfab.documents.base import Document, Failed, Host, Part, Seconds, Text, Time, about

JobName: TypeAlias = Annotated[str, about("Name of the job.")]
JobExit: TypeAlias = Annotated[
    int | None, about("The job's exit code as a shell reports it: 128 + n for signal n; null while it runs.")
]
Code: TypeAlias = Annotated[int | None, about("Exit code; -n if signal n ended it; null while it runs, or if unknown.")]
Rank: TypeAlias = Annotated[int | None, about("The rank; null for a process that is not a rank.")]


class Job(Document, frozen=True):
    """A job that was launched from this machine."""

    job: JobName
    job_id: Annotated[str, about("The identifier of this attempt: unique, also among jobs of the same name.")]
    state: State
    exit_code: JobExit
    ended: Annotated[bool, about("Whether the state is final.")]
    launcher: Annotated[str, about("The launcher: `per-node`, `slurm`.")]
    runtime: Annotated[str, about("What the job lives in: `tmux`, `slurm`, `kubernetes`.")]
    nodes: Annotated[
        list[str], about("The hosts, in the order of their node ranks; empty before a scheduler has chosen.")
    ]
    world_size: Annotated[int, about("Number of ranks.")]
    created: Annotated[float, about("When it was launched, in seconds since 1970-01-01 UTC.")]
    script: Annotated[list[str], about("The script and its arguments.")]


class Event(Struct, frozen=True, kw_only=True):
    """An event of a job. Most have more fields: `text`, `attempt`, `hosts`, `step`, `code`."""

    version: Annotated[int, about("The version of the schema: 1.")]
    time: Time
    event: Annotated[str, about("The kind: `planned`, `started`, `stop`, `attempt ended`, `restart`, `end`.")]


# ---- status


class FirstFailure(Part, frozen=True):
    """The process that failed first."""

    time: Time
    host: Host
    rank: Rank
    code: Annotated[int, about("Its exit code; -n if signal n ended it.")]
    reason: Annotated[str, about("Details; empty if there are none.")]
    how: Annotated[str, about("How it failed, as `fab why` says; empty if its logs do not tell.")]
    process: Annotated[str, about("Name of a process that is not a rank: `agent`; otherwise empty.")]


class RankStatus(Part, frozen=True):
    """A rank."""

    rank: Rank
    local_rank: Annotated[int | None, about("Its rank on the node.")]
    world_size: Annotated[int | None, about("Number of ranks, as in its environment.")]
    pid: Annotated[int | None, about("Its process; null if only its pod is known.")]
    start_time: Annotated[int | None, about("Start of the process in clock ticks since the node's boot.")]
    attempt: Annotated[int, about("How often its launcher had restarted the ranks before.")]
    started_at: Annotated[float | None, about("In seconds since 1970-01-01 UTC, by the node's clock.")]
    ended_at: Annotated[float | None, about("In seconds since 1970-01-01 UTC, by the node's clock.")]
    code: Code


class LastLine(Part, frozen=True):
    """The newest log line of a process."""

    time: Time
    text: str
    label: Annotated[int | str, about("The rank or the process that wrote it.")]


class ProcessStatus(Part, frozen=True):
    """A process that torchfab started: a launcher's agent, or a rank."""

    name: Annotated[str, about("`agent`, `head` or `rank-3`.")]
    state: State
    reason: Annotated[str, about("Details of the state; empty if there are none.")]
    started_at: Annotated[float | None, about("In seconds since 1970-01-01 UTC, by the node's clock.")]
    ended_at: Annotated[float | None, about("In seconds since 1970-01-01 UTC, by the node's clock.")]
    pid: Annotated[int | None, about("Its process; null before it has started.")]
    code: Code
    signal: Annotated[str | None, about("Name of the signal that ended it.")]
    warned: Annotated[str | None, about("Name of the signal by which a scheduler announced the end.")]
    last_line: LastLine | None


class NodeLine(Part, frozen=True):
    """The newest log line of a node."""

    text: str
    age_s: Annotated[float, about("Seconds since it was written.")]


class NodeStatus(Part, frozen=True):
    """A node of a job."""

    host: Host
    node_rank: Annotated[int, about("Position of the node in the job, from 0.")]
    state: State
    reason: Annotated[str, about("Details of the state; empty if there are none.")]
    ended: Annotated[bool, about("Whether all processes of the job there have ended.")]
    ranks: Annotated[list[RankStatus], about("Its ranks; of a restarted rank, the latest.")]
    processes: list[ProcessStatus]
    last_line: NodeLine | None
    clock_skew_s: Annotated[float, about("Seconds by which the node's clock is ahead of this machine's.")]
    left: Annotated[list[str], about("Processes that still run without a supervisor.")]


class Stall(Part, frozen=True):
    """How long the job has been silent."""

    stalled: Annotated[bool, about("Whether no rank has logged for `stall_s`: the job may hang.")]
    stall_s: Annotated[float, about("The limit in seconds (`--stall`); 0: never.")]
    silent_s: Annotated[float | None, about("Seconds since the last log line of any rank; null if no rank runs.")]
    host: Annotated[str | None, about("The host that logged last.")]
    rank: Annotated[int | None, about("The rank that logged last.")]
    line: Annotated[str | None, about("The last log line.")]


class Supervisor(Part, frozen=True):
    """The process that restarts a job."""

    pid: int | None = None
    since: Annotated[float | None, about("Start, in seconds since 1970-01-01 UTC.")] = None
    where: Annotated[str, about("Its tmux session; empty without one.")] = ""


class Status(Document, frozen=True):
    """The status of a job."""

    job: JobName
    state: State
    ended: Annotated[bool, about("Whether the state is final.")]
    exit_code: JobExit
    reason: Annotated[str, about("Details of the state; empty if there are none.")]
    first_failure: FirstFailure | None
    nodes: list[NodeStatus]
    stall: Stall
    attempt: Annotated[int, about("Number of the attempt, from 1.")]
    supervisor: Annotated[Supervisor | None, about("The supervisor that runs now.")]
    supervised: Annotated[bool, about("Whether the job has or had a supervisor.")]


# ---- why


class Cause(Part, frozen=True):
    """A cause."""

    kind: Annotated[str, about("`script`, `node`, `memory`, `killed`, `network`, ...: see docs/jobs.md.")]
    name: Annotated[str, about("Identifier of the cause.")]
    words: Text


class MainCause(Cause, frozen=True):
    """The cause of the job's end, or its state."""

    fix: Annotated[str, about("How to fix it; empty if that is not known.")]


class WhyFailure(Part, frozen=True):
    """A failure."""

    time: Time
    host: Host
    node_rank: int
    rank: Rank
    code: Code
    cause: Cause
    running: Annotated[bool, about("Whether the process has not ended: a rank that hangs.")]
    exception: Annotated[str | None, about("The last line of its traceback.")]
    at: Annotated[str | None, about("File and line of the exception.")]
    traceback: str | None
    log: Annotated[str, about("Path of its log file on the node.")]
    last_lines: list[str]


class EvidenceLine(Part, frozen=True):
    """A log line that supports the cause."""

    host: Host
    path: Annotated[str, about("The log file, or the name of another source.")]
    line: Annotated[int, about("Its number, from 1; 0 if unknown.")]
    time: Annotated[float, about("Seconds since 1970-01-01 UTC; 0 if unknown.")]
    text: str


class ProcessGroup(Part, frozen=True):
    """A process group of torch.distributed."""

    name: str
    description: str
    ranks: list[int]


class Collective(Part, frozen=True):
    """A collective that holds ranks up."""

    kind: Annotated[str, about("See docs/inside-the-run.md.")]
    ranks: Annotated[list[int], about("The ranks that hold the others up.")]
    hosts: list[str]
    group: ProcessGroup
    number: Annotated[int | None, about("Number of the call in the group, from 1.")]
    words: Text


class Straggler(Part, frozen=True):
    """Hosts that the others wait for."""

    hosts: list[str]
    words: Text


class TimelineEvent(Part, frozen=True):
    """An event."""

    time: Time
    where: Annotated[str, about("Hosts and ranks; empty for the job as a whole.")]
    what: Text


class Why(Document, frozen=True):
    """Why a job ended, or the state that it is in."""

    job: JobName
    state: State
    cause: MainCause
    first: Annotated[WhyFailure | None, about("The first failure; null if nothing failed.")]
    fingerprint: Annotated[str, about("Equal for failures of the same cause and place.")]
    certainty: Annotated[str | None, about("`certain`, `probable` or `possible`; null if nothing failed.")]
    evidence: list[EvidenceLine]
    rivals: Annotated[list[WhyFailure], about("Failures that may have come first instead.")]
    bad_nodes: Annotated[list[str], about("Hosts with a fault of their own.")]
    collectives: list[Collective]
    stragglers: list[Straggler]
    notes: list[str]
    consequences: Annotated[list[str], about("The failures that followed.")]
    other_ranks: Annotated[list[str], about("The ends of the other ranks.")]
    timeline: list[TimelineEvent]
    failed: Failed


# ---- stacks


class Frame(Part, frozen=True):
    """A call in a stack."""

    function: str
    file: str
    line: Annotated[int, about("The line that is executed; 0 for a native frame.")]
    source: Annotated[str, about("Text of the line; empty if it is not known.")]


class Thread(Part, frozen=True):
    """A thread."""

    name: str
    active: Annotated[bool, about("Whether it runs rather than waits.")]
    frames: Annotated[list[Frame], about("The innermost first.")]


class StackGroup(Part, frozen=True):
    """Ranks whose stacks are equal."""

    ranks: list[int | None]
    hosts: list[str]
    doing: Text
    waits: Annotated[bool, about("Whether they may stay there for ever.")]
    state: Annotated[str | None, about("The process state, if it matters: D, T, Z.")]
    own_frame: Annotated[Frame | None, about("The innermost call of your own code.")]
    frames: Annotated[list[Frame], about("The stack of the main thread, the innermost first.")]


class RankStack(Part, frozen=True):
    """A rank."""

    host: Host
    process: Annotated[str, about("The process of its launcher.")]
    rank: Rank
    pid: int
    state: Annotated[str, about("As in /proc/PID/stat; empty if unknown.")]
    cpu: Annotated[float, about("CPU use in cores.")]
    waits_in: Annotated[str, about("The kernel function that it waits in; empty if unknown.")]
    by: Annotated[str, about("`py-spy`, or the signal that was sent.")]
    ended: bool
    code: Code
    problem: Annotated[str | None, about("Why there is no stack.")]
    fix: str | None
    threads: Annotated[list[Thread], about("The main thread first.")]


class StacksNode(Part, frozen=True):
    """How stacks are read on a node."""

    host: Host
    py_spy: Annotated[str, about("Where py-spy was found; empty: nowhere.")]
    rights: Annotated[dict[str, Any], about("Settings of the node that decide whether a process may trace another.")]


class Stacks(Document, frozen=True):
    """The stacks of all ranks."""

    job: JobName
    summary: Text
    collectives: list[Collective]
    groups: list[StackGroup]
    ranks: list[RankStack]
    nodes: list[StacksNode]
    failed: Failed


# ---- profile


class RankShares(Part, frozen=True):
    """Where the time of a rank went, as fractions of 1."""

    rank: int
    name: str
    host: Host
    compute: float
    communication: float
    exposed: Annotated[float, about("Communication during which the rank computes nothing.")]
    data: Annotated[float, about("Waiting for data.")]
    idle: float


class LateCollective(Part, frozen=True):
    """A collective, and the rank that comes last."""

    group: str
    operation: str
    count: int
    duration_s: Annotated[float, about("Median duration, in seconds.")]
    rank: Annotated[int, about("The rank that came last most often.")]
    last: Annotated[int, about("How often.")]
    late_s: Annotated[float, about("By how much, in seconds (median).")]


class Unprofiled(Part, frozen=True):
    """A rank without a profile."""

    rank: int
    host: Host
    reason: Text


class Profile(Document, frozen=True):
    """The summary of a profile."""

    job: JobName
    path: Annotated[str, about("The trace.")]
    duration_s: Seconds
    clock_uncertainty_s: Annotated[float, about("How far the clocks of two nodes may still differ, in seconds.")]
    ranks: list[RankShares]
    collectives: list[LateCollective]
    missing: list[Unprofiled]
    failed: Failed

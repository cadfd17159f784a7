"""The status of a job: pure functions from the nodes' answers to states, exit codes, tables and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import msgspec

from torchfab.core.bounded_types import ExitCode, Label, Time, Whole
from torchfab.core.format import duration
from torchfab.core.inventory import fold, fold_ranks
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node


class State(str, Enum):
    """The state of a process, of a node or of a job.

    A process is STARTING until its supervisor has started it, then RUNNING, and ends in one of four states: SUCCEEDED
    (exit code 0), FAILED, STOPPED (it ended after a request to stop the job) or LOST (its supervisor or its node
    ended before it could record the end). A node has the worst state of its processes, and is UNREACHABLE while it does
    not answer; from there it can return to any state. With a scheduler, a job or a node is PENDING before STARTING,
    until the scheduler has allocated its resources.
    """

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    UNREACHABLE = "unreachable"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"

    def __str__(self) -> str:
        return self.value  # `running`, not `State.RUNNING`

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)


ACTIVE = (State.PENDING, State.STARTING, State.RUNNING, State.UNREACHABLE)
# The state of a node is the first of these that one of its processes has.
_WORST_FIRST = (
    *(State.LOST, State.FAILED, State.UNREACHABLE, State.PENDING, State.STARTING),
    *(State.RUNNING, State.STOPPED, State.SUCCEEDED),
)
_FAILED = (State.FAILED, State.LOST, State.STOPPED)
_UNDECIDED = (State.UNREACHABLE, State.PENDING, State.STARTING, State.RUNNING, State.SUCCEEDED)
SIGTERM_CODE = 143
CUT_OFF = "its launch was interrupted before the node received the commit"
SMALLEST_SKEW_S = 0.5


class RankStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A rank, as a supervisor recorded it.

    Parameters
    ----------
    rank, local_rank, world_size : int, optional
        As in its environment; None if missing there.
    pid, start_time : int, optional
        Its process; None if only its pod is known. The start time, in clock ticks since boot, distinguishes it from a
        later process with the same pid.
    attempt : int
        Restart count of the launcher when it started.
    started, ended : float, optional
        By the node's clock, in seconds since the epoch.
    code : int, optional
        Its exit code, -n for signal n; None while it is running, and if it was not recorded.
    """

    rank: Whole | None
    local_rank: Whole | None
    world_size: Whole | None
    pid: Whole | None
    start_time: Whole | None
    attempt: Whole
    started: Time | None
    ended: Time | None
    code: ExitCode | None


class LastLine(msgspec.Struct, frozen=True, kw_only=True):
    """The last log line: its time, its text, and the rank or process that wrote it."""

    time: Time
    text: str
    label: Label


class ReportedExit(msgspec.Struct, frozen=True, kw_only=True):
    """The exit of a rank as its launcher reported it."""

    rank: Whole
    code: ExitCode


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A process that a supervisor of a node started.

    Parameters
    ----------
    name : str
        `agent`, `head` or `rank-3`.
    state : State
        Not PENDING or UNREACHABLE.
    reason : str
        Details of the state; empty if there are none.
    started, ended : float, optional
        By the node's clock, in seconds since the epoch.
    pid : int, optional
        Its process id; None before it has started.
    code : int, optional
        Its exit code, -n for signal n.
    signal : str, optional
        The name of the signal that ended it.
    warned : str, optional
        The name of the signal by which a scheduler announced the end.
    ranks : list of RankStatus
        Its ranks, those of earlier attempts included.
    last_line : LastLine, optional
        The newest line of its logs.
    reported : list of ReportedExit
        Failed ranks as its launcher reported them, the root cause first.
    """

    name: str
    state: State
    reason: str
    started: Time | None
    ended: Time | None
    pid: Whole | None
    code: ExitCode | None
    signal: str | None
    warned: str | None
    ranks: list[RankStatus]
    last_line: LastLine | None
    reported: list[ReportedExit]


class StatusReport(msgspec.Struct, frozen=True, kw_only=True):
    """A node's answer to a status request.

    Parameters
    ----------
    processes : list of ProcessStatus
        The processes of the job there.
    now : float
        The node's clock, in seconds since the epoch.
    exists : bool
        Whether the job's folder exists there.
    stop_asked : float, optional
        Time of the request to stop the job, by the node's clock.
    left : list of str
        Descriptions of processes that still run without a supervisor.
    """

    processes: list[ProcessStatus]
    now: Time
    exists: bool
    stop_asked: Time | None
    left: list[str] = []


@dataclass(frozen=True)
class NodeStatus:
    """The status of a job on one node.

    Parameters
    ----------
    node : Node
        The node.
    state : State
        The worst of its processes' states, or UNREACHABLE.
    reason : str
        Human-readable details; empty if there are none.
    processes : tuple of ProcessStatus
        The processes of the job there.
    now : float
        Time of the answer by the node's clock, in seconds since the epoch.
    skew_s : float
        Seconds by which the node's clock is ahead of this machine's.
    left : tuple of str
        Processes that still run without a supervisor.
    stop_asked : float, optional
        Time of the request to stop the job, by the node's clock; None without such a request.
    """

    node: Node
    state: State
    reason: str = ""
    processes: tuple[ProcessStatus, ...] = ()
    now: float = 0.0
    skew_s: float = 0.0
    left: tuple[str, ...] = ()
    stop_asked: float | None = None

    @property
    def has_ended(self) -> bool:
        """Whether all known processes of the job on the node have ended."""
        return self.state not in ACTIVE and all(each.state not in ACTIVE for each in self.processes)

    @property
    def ranks(self) -> list[RankStatus]:
        """The latest status of each of its ranks; a restarted rank is listed once."""
        last: dict[int | None, RankStatus] = {}
        for process in self.processes:
            for rank in process.ranks:
                last[rank.rank] = rank
        return [last[key] for key in sorted(last, key=lambda key: (key is None, key))]

    @property
    def last_line(self) -> LastLine | None:
        """The newest line of its logs: time, text, and the label of the writer; None before the first line."""
        lines = [process.last_line for process in self.processes if process.last_line]
        return max(lines, key=lambda line: line.time) if lines else None


@dataclass(frozen=True)
class Failure:
    """The unsuccessful end of a rank or another process.

    Parameters
    ----------
    time : float
        When it ended, by this machine's clock, in seconds since the epoch.
    host : str
        The node's label.
    rank : int, optional
        The rank; None for another process.
    code : int
        Its exit code; -n if signal n ended it.
    reason : str
        Human-readable reason, if one is known.
    how : str
        How it failed, as described by `fab why`; empty without a diagnosis.
    process : str
        Name of a process that is not a rank: `agent`, `head`; empty if unknown.
    """

    time: float
    host: str
    rank: int | None
    code: int
    reason: str = ""
    how: str = ""
    process: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"{self.host} failed first ({self.reason})"
        name = f"rank {self.rank}" if self.rank is not None else f"the {self.process or 'process'}"
        return f"{name} on {self.host} failed first ({self.how or describe_exit_code(self.code)})"

    @property
    def exit_code(self) -> int:
        """The exit code as a shell reports it: 128 + n for signal n; at most 255, because 256 would mean success."""
        return min(255, self.code if self.code >= 0 else 128 - self.code)


@dataclass(frozen=True)
class Verdict:
    """A scheduler's status of a whole job. It is more reliable than the nodes, which the scheduler may deallocate.

    Parameters
    ----------
    state : State, optional
        The job's state; None to derive it from the states of the nodes.
    ended : bool
        Whether the job is neither running nor pending.
    reason : str
        Why the job is pending, or why the scheduler ended it; empty if the scheduler is not the cause.
    code : int, optional
        The job's exit code according to the scheduler; used if no rank failed.
    """

    state: State | None = None
    ended: bool = False
    reason: str = ""
    code: int | None = None


@dataclass(frozen=True)
class JobStatus:
    """The status of a job.

    Parameters
    ----------
    nodes : tuple of NodeStatus
        In the order of node ranks; empty while a scheduler has not allocated any.
    min_nodes : int
        The job has failed when fewer healthy nodes than this are left.
    verdict : Verdict, optional
        The scheduler's status of the whole job; None without a scheduler.
    diagnosed : Failure, optional
        The first failure according to the logs; None if they were not read.
    """

    nodes: tuple[NodeStatus, ...]
    min_nodes: int
    verdict: Verdict | None = None
    diagnosed: Failure | None = None

    @property
    def has_ended(self) -> bool:
        """Whether all processes of the job have ended."""
        if self.verdict:
            return self.verdict.ended
        return bool(self.nodes) and all(node.has_ended for node in self.nodes)

    @property
    def has_failed(self) -> bool:
        """Whether too few healthy nodes are left."""
        if self.verdict and self.verdict.state:
            return self.verdict.state in _FAILED
        bad = [node for node in self.nodes if node.state in _FAILED]
        return bool(bad) and len(self.nodes) - len(bad) < (self.min_nodes or len(self.nodes))

    @property
    def reason(self) -> str:
        """Why the job is pending, or why the scheduler ended it; empty if no scheduler is the cause."""
        return self.verdict.reason if self.verdict else ""

    @property
    def state(self) -> State:
        """The state of the whole job."""
        if self.verdict and self.verdict.state and not self.was_stopped:
            return self.verdict.state
        states = {node.state for node in self.nodes}
        if self.has_ended and not self.has_failed:
            return State.SUCCEEDED
        if self.has_failed and self.was_stopped:
            return State.STOPPED
        if self.has_failed:
            return State.LOST if states & {State.LOST} and not states & {State.FAILED} else State.FAILED
        return next((state for state in _UNDECIDED if state in states), State.STARTING)

    @property
    def was_stopped(self) -> bool:
        """Whether a stop was requested before the first failure; later failures are consequences of the stop."""
        if self.verdict and self.verdict.state:
            return self.verdict.state == State.STOPPED
        # A stop never kills the supervisor of a node that received no request. When that supervisor died is unknown.
        if any(node.state == State.LOST and node.processes and node.stop_asked is None for node in self.nodes):
            return False
        requests = [node.stop_asked - node.skew_s for node in self.nodes if node.stop_asked is not None]
        first = self._first_end
        return bool(requests) and (first is None or min(requests) <= first.time)

    @property
    def first_failure(self) -> Failure | None:
        """The first failure: by the logs if they were read, otherwise the first end by this machine's clock."""
        return self.diagnosed or self._first_end

    @property
    def _first_end(self) -> Failure | None:
        failures = [failure for node in self.nodes for failure in find_failures(node)]
        return min(failures, key=lambda failure: failure.time) if failures else None

    @property
    def exit_code(self) -> int | None:
        """The job's exit code: 0, or that of the rank that failed first; None while it is running."""
        if not self.has_ended and not self.has_failed:
            return None
        if self.state == "succeeded":
            return 0
        if self.state == "stopped":
            return SIGTERM_CODE
        scheduler_code = self.verdict.code if self.verdict else None
        return (first.exit_code if (first := self._first_end) else scheduler_code) or 1


def find_failures(node: NodeStatus) -> list[Failure]:
    """Return the failures on a node.

    Parameters
    ----------
    node : NodeStatus
        The status of the node.

    Returns
    -------
    list of Failure
        Those of its ranks; that of a process itself if none of its ranks failed, or if a signal ended it before them.
    """
    failures: list[Failure] = []
    for process in node.processes:
        if process.state not in (State.FAILED, State.LOST):
            continue
        host, skew = node.node.label, node.skew_s
        ends = [
            Failure(rank.ended - skew, host, rank.rank, rank.code) for rank in process.ranks if rank.ended and rank.code
        ]
        # The end of a lost process was not recorded: it ended after its last log line.
        last_activity = process.last_line.time if process.last_line else process.started
        ended = (process.ended or last_activity or node.now) - skew
        if _was_killed_before_its_ranks(process):
            ends = [Failure(ended, host, None, process.code or 1, process.reason), *ends]
        if not ends:
            ends = [Failure(ended, host, each.rank, each.code) for each in process.reported[:1]]
        failures += ends or [Failure(ended, host, None, process.code or 1, process.reason)]
    return failures


def _was_killed_before_its_ranks(process: ProcessStatus) -> bool:
    """Return whether a signal ended a launcher, and its ranks failed only afterwards."""
    failed = [rank for rank in process.ranks if rank.ended and rank.code]
    if process.ended is None or (process.code or 0) >= 0 or any(rank.pid == process.pid for rank in failed):
        return False
    return bool(failed) and all(process.ended < (rank.ended or 0.0) for rank in failed)


def from_answer(node: Node, answer: StatusReport, asked: float, answered: float) -> NodeStatus:
    """Convert a node's answer to its status.

    Parameters
    ----------
    node : Node
        The node.
    answer : StatusReport
        Its answer to a status request.
    asked, answered : float
        When the request was sent and the answer arrived, by this machine's clock, in seconds since the epoch.

    Returns
    -------
    NodeStatus
        The status of the node.
    """
    processes = tuple(answer.processes)
    skew = _skew_s(answer.now - (asked + answered) / 2, answered - asked)
    left, stop_asked = tuple(answer.left), answer.stop_asked
    if not answer.exists:
        return NodeStatus(node, State.LOST, "the job's folder no longer exists on the node", (), answer.now, skew)
    states = [process.state for process in processes] or [State.STARTING]
    state = next(each for each in _WORST_FIRST if each in states)
    reasons = [process.reason for process in processes if process.reason]
    return NodeStatus(node, state, reasons[0] if reasons else "", processes, answer.now, skew, left, stop_asked)


def _skew_s(offset_s: float, round_trip_s: float) -> float:
    """Return the offset of a clock; 0 if the round trip explains the measured offset.

    The uncertainty of an offset is half a round trip (as in NTP). Correcting by a smaller one could reverse the order
    of events.
    """
    return offset_s if abs(offset_s) > max(SMALLEST_SKEW_S, round_trip_s / 2) else 0.0


# ---- human-readable output and JSON


def table_rows(job: JobStatus) -> list[list[str]]:
    """Return the rows of the status table.

    Parameters
    ----------
    job : JobStatus
        The status of the job.

    Returns
    -------
    list of list of str
        The header and one row per node; above 16 nodes, one row per group of nodes with equal states.
    """
    head = ["node", "state", "ranks", "pids", "up", "last log line"]
    rows = [_row(status, job.diagnosed) for status in job.nodes]
    if len(job.nodes) > 16:
        rows = _grouped_rows(job.nodes, job.diagnosed)
    return [head, *rows]


def _row(status: NodeStatus, diagnosed: Failure | None) -> list[str]:
    ranks = [rank.rank for rank in status.ranks if rank.rank is not None]
    pids = [str(rank.pid) for rank in status.ranks if rank.pid] or [
        str(each.pid) for each in status.processes if each.pid
    ]
    return [
        status.node.label,
        _describe_state(status, diagnosed),
        fold_ranks(ranks) or "-",
        ",".join(pids[:4]) + (",…" if len(pids) > 4 else "") or "-",
        _uptime(status),
        _describe_last_line(status),
    ]


def _grouped_rows(nodes: Sequence[NodeStatus], diagnosed: Failure | None) -> list[list[str]]:
    groups: dict[str, list[NodeStatus]] = {}
    for status in nodes:
        groups.setdefault(_describe_state(status, diagnosed), []).append(status)
    rows = []
    for state, group in groups.items():
        stalest = max(group, key=lambda status: status.now - (status.last_line.time if status.last_line else 0.0))
        ranks = [rank.rank for status in group for rank in status.ranks if rank.rank is not None]
        hosts = fold([status.node.label for status in group])
        rows.append([hosts, state, fold_ranks(ranks) or "-", "-", _uptime(group[0]), _describe_last_line(stalest)])
    return rows


def _describe_state(status: NodeStatus, diagnosed: Failure | None) -> str:
    text = str(status.state)
    failures = find_failures(status)
    if failures and status.state == "failed":
        first = min(failures, key=lambda failure: failure.time)
        if diagnosed and diagnosed.code and (diagnosed.host, diagnosed.reason) == (status.node.label, ""):
            first = diagnosed
        rank = f"rank {first.rank} " if first.rank is not None else ""
        text += f" ({rank}{describe_exit_code(first.code)})"
    if status.reason:
        text += f" ({status.reason})"
    if status.left:
        more = f" and {len(status.left) - 1} more" if len(status.left) > 1 else ""
        text += f", still running: {status.left[0]}{more}"
    return text


def describe_exit_code(code: int) -> str:
    """Describe an exit code.

    Parameters
    ----------
    code : int
        As subprocess returns it: -n for signal n.

    Returns
    -------
    str
        `exit code 7`, or the name of the signal: `SIGKILL`.
    """
    import signal

    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _uptime(status: NodeStatus) -> str:
    starts = [process.started for process in status.processes if process.started]
    if not starts:
        return "-"
    ends = [process.ended for process in status.processes if process.ended]
    end = max(ends) if len(ends) == len(status.processes) else status.now
    return duration(end - min(starts))


def _describe_last_line(status: NodeStatus) -> str:
    line = status.last_line
    return f"{duration(status.now - line.time)} ago: {line.text[:80]}" if line else "-"


def as_json(name: str, job: JobStatus) -> dict[str, Any]:
    """Return the status of a job as JSON.

    Parameters
    ----------
    name : str
        The job's name.
    job : JobStatus
        Its status.

    Returns
    -------
    dict of str to Any
        The document of `fab status --json`.
    """
    first = job.first_failure
    return {
        "job": name,
        "state": job.state,
        "ended": job.has_ended,
        "exit_code": job.exit_code,
        "reason": job.reason,
        "first_failure": _failure_as_json(first) if first else None,
        "nodes": [_node_as_json(status) for status in job.nodes],
    }


def _failure_as_json(first: Failure) -> dict[str, Any]:
    return dict(vars(first))


def _node_as_json(status: NodeStatus) -> dict[str, Any]:
    line = status.last_line
    return {
        "host": status.node.label,
        "node_rank": status.node.rank,
        "state": status.state,
        "reason": status.reason,
        "ended": status.has_ended,
        "ranks": [_times_named(msgspec.to_builtins(rank)) for rank in status.ranks],
        "processes": [_process_as_json(process) for process in status.processes],
        "last_line": {"text": line.text, "age_s": status.now - line.time} if line else None,
        "clock_skew_s": status.skew_s,
        "left": list(status.left),
    }


def _process_as_json(process: ProcessStatus) -> dict[str, Any]:
    values = _times_named(msgspec.to_builtins(process))
    return {key: value for key, value in values.items() if key not in ("ranks", "reported")}


def _times_named(values: dict[str, Any]) -> dict[str, Any]:
    """Name the times of a process or rank as times: `ended` of a node and of a job is a truth value."""
    names = {"started": "started_at", "ended": "ended_at"}
    return {names.get(key, key): value for key, value in values.items()}

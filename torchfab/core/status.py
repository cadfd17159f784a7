"""How a job is: pure functions from what its nodes answered to states, exit codes, tables and JSON.

States of a process, and of a node: starting, running, succeeded, failed, stopped, lost; of a node also unreachable.
A job, or a node of one, on a cluster with a scheduler is pending until it is given what it asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchfab.core.inventory import fold, fold_ranks
from torchfab.core.specs import Node

ACTIVE = ("pending", "starting", "running", "unreachable")
# The worst first: what a node or a job is said to be when its parts differ.
_WORST_FIRST = ("lost", "failed", "unreachable", "pending", "starting", "running", "stopped", "succeeded")
_FAILED = ("failed", "lost", "stopped")
_UNDECIDED = ("unreachable", "pending", "starting", "running", "succeeded")
SIGTERM_CODE = 143
CUT_OFF = "its launch was cut off before the node was told to keep it"
SMALLEST_SKEW_S = 0.5


@dataclass(frozen=True)
class NodeStatus:
    """How a job is on one node.

    Parameters
    ----------
    node : Node
        The node.
    state : str
        The worst of its processes' states, or `unreachable`.
    reason : str
        What more is known, in words.
    processes : tuple of Mapping
        What the node told of each process: name, state, pid, started, ended, code, signal, ranks, last_line.
    now : float
        When it was asked, by its own clock, in seconds since the epoch.
    skew_s : float
        How much its clock is ahead of ours.
    left : tuple of str
        Processes that run though nobody supervises them.
    stop_asked : float, optional
        When it was asked to stop the job, by its own clock.
    """

    node: Node
    state: str
    reason: str = ""
    processes: tuple[Mapping[str, Any], ...] = ()
    now: float = 0.0
    skew_s: float = 0.0
    left: tuple[str, ...] = ()
    stop_asked: float | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing runs there any more, as far as is known."""
        return self.state not in ACTIVE and all(each["state"] not in ACTIVE for each in self.processes)

    @property
    def ranks(self) -> list[Mapping[str, Any]]:
        """Its ranks, each as seen last: a restarted rank once."""
        last: dict[Any, Mapping[str, Any]] = {}
        for process in self.processes:
            for rank in process["ranks"]:
                last[rank["rank"]] = rank
        return [last[key] for key in sorted(last, key=lambda key: (key is None, key))]

    @property
    def last_line(self) -> Mapping[str, Any] | None:
        """The newest line of its logs: time, text, and as `label` who wrote it."""
        lines = [process["last_line"] for process in self.processes if process["last_line"]]
        return max(lines, key=lambda line: line["time"]) if lines else None


@dataclass(frozen=True)
class Failure:
    """The end of a rank, or of a process, that was not a success."""

    time: float
    host: str
    rank: int | None
    code: int
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"{self.host} failed first ({self.reason})"
        who = f"rank {self.rank}" if self.rank is not None else "the process"
        return f"{who} on {self.host} failed first ({code_words(self.code)})"

    @property
    def exit_code(self) -> int:
        """As a shell reports it: 128 + n for signal n; at most 255, as 256 would be success."""
        return min(255, self.code if self.code >= 0 else 128 - self.code)


@dataclass(frozen=True)
class Verdict:
    """What a cluster's scheduler says of a job as a whole: it knows more than the nodes, which it may take away.

    Parameters
    ----------
    state : str
        The job's state; empty: as its nodes' states say.
    ended : bool
        Whether nothing of the job runs or waits any more.
    reason : str
        Why, in words, where the scheduler itself is the cause: why the job waits, or what ended it.
    code : int, optional
        The job's exit code as the scheduler knows it, where no rank is to blame.
    """

    state: str = ""
    ended: bool = False
    reason: str = ""
    code: int | None = None


@dataclass(frozen=True)
class JobStatus:
    """How a job is.

    Parameters
    ----------
    nodes : tuple of NodeStatus
        In the order of node ranks; none while a scheduler has given none.
    min_nodes : int
        With fewer healthy nodes the job has failed.
    verdict : Verdict, optional
        What a scheduler says of the whole; None where there is no scheduler.
    """

    nodes: tuple[NodeStatus, ...]
    min_nodes: int
    verdict: Verdict | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing of the job runs any more."""
        if self.verdict:
            return self.verdict.ended
        return bool(self.nodes) and all(node.has_ended for node in self.nodes)

    @property
    def has_failed(self) -> bool:
        """Whether too few of its nodes are left."""
        if self.verdict and self.verdict.state:
            return self.verdict.state in _FAILED
        bad = [node for node in self.nodes if node.state in _FAILED]
        return bool(bad) and len(self.nodes) - len(bad) < (self.min_nodes or len(self.nodes))

    @property
    def reason(self) -> str:
        """Why the job waits, or what ended it, in words; empty where no scheduler is the cause."""
        return self.verdict.reason if self.verdict else ""

    @property
    def state(self) -> str:
        """The state of the whole job."""
        if self.verdict and self.verdict.state and not self.was_stopped:
            return self.verdict.state
        states = {node.state for node in self.nodes}
        if self.has_ended and not self.has_failed:
            return "succeeded"
        if self.has_failed and self.was_stopped:
            return "stopped"
        if self.has_failed:
            return "lost" if states & {"lost"} and not states & {"failed"} else "failed"
        return next((state for state in _UNDECIDED if state in states), "starting")

    @property
    def was_stopped(self) -> bool:
        """Whether it was asked to stop before anything of it failed: what fails then is a consequence."""
        if self.verdict and self.verdict.state:
            return self.verdict.state == "stopped"
        # Nobody's stop kills a supervisor on a node that was not asked to stop; when it died is not known.
        if any(node.state == "lost" and node.processes and node.stop_asked is None for node in self.nodes):
            return False
        asked = [node.stop_asked - node.skew_s for node in self.nodes if node.stop_asked is not None]
        first = self.first_failure
        return bool(asked) and (first is None or min(asked) <= first.time)

    @property
    def first_failure(self) -> Failure | None:
        """The rank that failed first, by the clock of this machine; the others are most often its consequences."""
        found = [failure for node in self.nodes for failure in failures_of(node)]
        return min(found, key=lambda failure: failure.time) if found else None

    @property
    def exit_code(self) -> int | None:
        """The job's exit code: 0, or the first failing rank's own; None while it runs."""
        if not self.has_ended and not self.has_failed:
            return None
        if self.state == "succeeded":
            return 0
        if self.state == "stopped":
            return SIGTERM_CODE
        known = self.verdict.code if self.verdict else None
        return (first.exit_code if (first := self.first_failure) else known) or 1


def failures_of(node: NodeStatus) -> list[Failure]:
    """Return the ends of a node's ranks that were not a success; of its processes, where no rank is to blame."""
    found: list[Failure] = []
    for process in node.processes:
        if process["state"] not in ("failed", "lost"):
            continue
        host, skew = node.node.label, node.skew_s
        ranks = [rank for rank in process["ranks"] if rank["ended"] and rank["code"]]
        ends = [Failure(rank["ended"] - skew, host, rank["rank"], rank["code"]) for rank in ranks]
        # Of a lost process nobody wrote down the end: its last log line is the last sign of life.
        last_sign = (process["last_line"] or {"time": process["started"]})["time"]
        ended = (process["ended"] or last_sign or node.now) - skew
        if not ends:
            ends = [Failure(ended, host, each["rank"], each["code"]) for each in process["reported"][:1]]
        found += ends or [Failure(ended, host, None, process["code"] or 1, process["reason"])]
    return found


def from_answer(node: Node, answer: Mapping[str, Any], asked: float, answered: float) -> NodeStatus:
    """Return a node's status from what it told.

    Parameters
    ----------
    asked, answered : float
        When the question left and the answer came, by this machine's clock, in seconds since the epoch.
    """
    processes = tuple(answer["processes"])
    skew = _skew_s(answer["now"] - (asked + answered) / 2, answered - asked)
    left, stop_asked = tuple(answer.get("left", ())), answer["stop_asked"]
    if not answer["exists"]:
        return NodeStatus(node, "lost", "the job's folder is gone from the node", (), answer["now"], skew)
    states = [process["state"] for process in processes] or ["starting"]
    state = next(each for each in _WORST_FIRST if each in states)
    reasons = [process["reason"] for process in processes if process["reason"]]
    return NodeStatus(node, state, reasons[0] if reasons else "", processes, answer["now"], skew, left, stop_asked)


def _skew_s(offset_s: float, round_trip_s: float) -> float:
    """Return how far a clock is off; 0 where the way of the question and the answer explains what was measured.

    An offset is known to half a round trip (as in NTP); a small one would turn the order of events around, not mend it.
    """
    return offset_s if abs(offset_s) > max(SMALLEST_SKEW_S, round_trip_s / 2) else 0.0


# ---- for people


def table(job: JobStatus) -> list[list[str]]:
    """Return the rows of the status table, with its head; many nodes that are alike become one row."""
    head = ["node", "state", "ranks", "pids", "up", "last log line"]
    rows = [_row(status) for status in job.nodes]
    if len(job.nodes) > 16:
        rows = _folded(job.nodes)
    return [head, *rows]


def _row(status: NodeStatus) -> list[str]:
    ranks = [rank["rank"] for rank in status.ranks if rank["rank"] is not None]
    pids = [str(rank["pid"]) for rank in status.ranks if rank["pid"]] or [
        str(each["pid"]) for each in status.processes if each["pid"]
    ]
    return [
        status.node.label,
        _state_words(status),
        fold_ranks(ranks) or "-",
        ",".join(pids[:4]) + (",…" if len(pids) > 4 else "") or "-",
        _uptime(status),
        _last_words(status),
    ]


def _folded(nodes: Sequence[NodeStatus]) -> list[list[str]]:
    groups: dict[str, list[NodeStatus]] = {}
    for status in nodes:
        groups.setdefault(_state_words(status), []).append(status)
    rows = []
    for words, group in groups.items():
        stalest = max(group, key=lambda status: status.now - (status.last_line or {"time": 0.0})["time"])
        ranks = [rank["rank"] for status in group for rank in status.ranks if rank["rank"] is not None]
        hosts = fold([status.node.label for status in group])
        rows.append([hosts, words, fold_ranks(ranks) or "-", "-", _uptime(group[0]), _last_words(stalest)])
    return rows


def _state_words(status: NodeStatus) -> str:
    words = status.state
    ends = failures_of(status)
    if ends and status.state == "failed":
        first = min(ends, key=lambda end: end.time)
        who = f"rank {first.rank} " if first.rank is not None else ""
        words += f" ({who}{code_words(first.code)})"
    if status.reason:
        words += f" ({status.reason})"
    if status.left:
        words += f", {len(status.left)} processes left"
    return words


def code_words(code: int) -> str:
    """Return an exit code for people: `exit code 7`, `SIGKILL`."""
    import signal

    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _uptime(status: NodeStatus) -> str:
    starts = [process["started"] for process in status.processes if process["started"]]
    ends = [process["ended"] for process in status.processes]
    if not starts:
        return "-"
    end = max(ends) if all(ends) else status.now
    return duration(end - min(starts))


def _last_words(status: NodeStatus) -> str:
    line = status.last_line
    return f"{duration(status.now - line['time'])} ago: {line['text'][:80]}" if line else "-"


def duration(seconds: float) -> str:
    """Return a duration for people: `4 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def as_json(name: str, job: JobStatus) -> dict[str, Any]:
    """Return the status for machines."""
    first = job.first_failure
    return {
        "job": name,
        "state": job.state,
        "ended": job.has_ended,
        "exit_code": job.exit_code,
        "reason": job.reason,
        "first_failure": vars(first) if first else None,
        "nodes": [_node_as_json(status) for status in job.nodes],
    }


def _node_as_json(status: NodeStatus) -> dict[str, Any]:
    line = status.last_line
    return {
        "host": status.node.label,
        "node_rank": status.node.rank,
        "state": status.state,
        "reason": status.reason,
        "ended": status.has_ended,
        "ranks": [dict(rank) for rank in status.ranks],
        "processes": [
            {key: value for key, value in process.items() if key not in ("ranks", "reported")}
            for process in status.processes
        ],
        "last_line": {"text": line["text"], "age_s": status.now - line["time"]} if line else None,
        "clock_skew_s": status.skew_s,
        "left": list(status.left),
    }

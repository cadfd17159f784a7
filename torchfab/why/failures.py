"""Collect the failures of ranks, launchers and nodes of a job, and find the first one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torchfab.core.status import CUT_OFF, ProcessStatus, RankStatus
from torchfab.remote.job.start_barrier import NEVER_RELEASED
from torchfab.why import signatures
from torchfab.why.causes import Cause, Kind
from torchfab.why.classify import KILL, cause_of, find_traceback, last_lines, logs_of
from torchfab.why.evidence import Evidence, Label, NodeEvidence, RankEnd
from torchfab.why.tracebacks import Traceback

# How likely a failure is the first cause, the likeliest first. The time of a lost node is only its last sign of life.
ROOT, LOST, SYMPTOM, CONSEQUENCE = range(4)


@dataclass(frozen=True)
class Failure:
    """A failed rank, process or node.

    Parameters
    ----------
    time : float
        When it failed, in seconds since the epoch; if it was lost, its last sign of life.
    host, node_rank, rank : str, int, int or None
        Where it ran; `rank` is None for a launcher process or a whole node.
    process : str
        Name of the launcher process: `agent`, `head`; empty for a rank or a whole node.
    code : int, optional
        Exit code, negative for a signal; None if it was not recorded.
    cause : Cause
        Why it failed.
    weight : int
        ROOT, LOST, SYMPTOM or CONSEQUENCE: how likely it is the first cause.
    traceback : Traceback, optional
        The last traceback in its log.
    lines : tuple of str
        The last lines of its log.
    path : str
        Path of that log on the node.
    lived_s : float
        How long it ran, in seconds.
    """

    time: float
    host: str
    node_rank: int
    rank: int | None
    code: int | None
    cause: Cause
    weight: int
    traceback: Traceback | None = None
    lines: tuple[str, ...] = ()
    path: str = ""
    lived_s: float = 0.0
    process: str = ""

    @property
    def label(self) -> str:
        """Human-readable name: `rank 3 on node1`, `the agent on node1`, `node1`."""
        if self.rank is not None:
            return f"rank {self.rank} on {self.host}"
        return f"the {self.process} on {self.host}" if self.process else self.host


def all_failures(evidence: Evidence) -> list[Failure]:
    """Return all failures of a job.

    Parameters
    ----------
    evidence : Evidence
        Of the job.

    Returns
    -------
    list of Failure
        Sorted by time.
    """
    failures = [failure for node in evidence.nodes for failure in _node_failures(node)]
    return sorted(failures, key=lambda failure: failure.time)


def first_failure(failures: Sequence[Failure], slack_s: float = 5.0) -> Failure | None:
    """Return the failure that caused the others.

    This is the earliest ROOT failure. Symptoms on other ranks may carry a time up to `slack_s` seconds earlier, because
    clocks differ and a process takes time to exit. An older symptom has another cause.

    Parameters
    ----------
    failures : sequence of Failure
        All failures of the job.
    slack_s : float
        In seconds. Default 5.

    Returns
    -------
    Failure or None
        None if nothing failed.
    """
    if not failures:
        return None
    likeliest = min(failures, key=lambda failure: (failure.weight, failure.time))
    earlier = [
        failure for failure in failures if failure.weight < CONSEQUENCE and failure.time < likeliest.time - slack_s
    ]
    return first_failure(earlier, slack_s) if earlier and likeliest.weight != LOST else likeliest


# ---- one node


def _node_failures(node: NodeEvidence) -> Iterator[Failure]:
    if node.status.state == "lost" and not node.status.processes:
        cause = Cause(Kind.NODE, "node-lost", node.status.reason, "launch it again, with another --name")
        if node.status.reason == CUT_OFF:
            cause = _cut_off(CUT_OFF)
        yield Failure(node.status.now - node.status.skew_s, node.host, node.status.node.rank, None, None, cause, LOST)
    for process in node.status.processes:
        yield from _process_failures(node, process)


def _cut_off(words: str) -> Cause:
    return Cause(Kind.KILLED, "launch-cut-off", words, "fab stop, then launch it again")


def _process_failures(node: NodeEvidence, process: ProcessStatus) -> Iterator[Failure]:
    ranks = _failed_ranks(process)
    for rank in ranks:
        end = RankEnd(rank.rank, rank.pid, rank.code, rank.started, rank.ended, rank.attempt)
        yield _rank_failure(node, process, end)
    state, code = process.state, process.code
    if state == "lost":
        yield _lost_process(node, process)
    elif code is not None and code < 0 and not _is_rank(process):
        yield _launcher_failure(node, process)
    elif state == "failed" and not ranks:
        for reported in process.reported[:1]:
            ended = process.ended or node.status.now
            yield _rank_failure(node, process, RankEnd(reported.rank, 0, reported.code, process.started, ended))
        if not process.reported:
            yield _launcher_failure(node, process)


def _failed_ranks(process: ProcessStatus) -> list[RankStatus]:
    """Return the ranks of the last attempt that ended with a nonzero exit code."""
    last = max((rank.attempt for rank in process.ranks), default=0)
    return [rank for rank in process.ranks if rank.attempt == last and rank.ended and rank.code]


def _is_rank(process: ProcessStatus) -> bool:
    return any(rank.pid == process.pid and rank.pid for rank in process.ranks)


def _rank_failure(node: NodeEvidence, process: ProcessStatus, rank: RankEnd) -> Failure:
    logs, ended, code = logs_of(node, rank.rank), rank.ended or node.status.now, rank.code or 0
    traceback, path, tail = find_traceback(node, rank.rank, logs, rank.attempt)
    cause = cause_of(node, process, rank, traceback, tail)
    failed_before = [each for each in _failed_ranks(process) if (each.ended or 0.0) < ended]
    return Failure(
        time=ended - node.status.skew_s,
        host=node.host,
        node_rank=node.status.node.rank,
        rank=rank.rank,
        code=rank.code,
        cause=cause,
        weight=_weight(cause, code, bool(failed_before) or process.state == "stopped"),
        traceback=traceback,
        lines=last_lines(tail),
        path=path,
        lived_s=ended - (rank.started or ended),
    )


def _weight(cause: Cause, code: int, others_before: bool) -> int:
    if cause.name in ("stopped", "ended", "by-launcher", "by-supervisor"):
        return CONSEQUENCE
    if code == KILL and cause.name == "killed" and others_before:
        return CONSEQUENCE
    return SYMPTOM if cause.is_symptom else ROOT


def _launcher_failure(node: NodeEvidence, process: ProcessStatus) -> Failure:
    """Return the failure of a process that is not a rank: torchrun, mpirun."""
    traceback, path, tail = find_traceback(node, "agent", logs_of(node, "agent"))
    end = RankEnd(None, process.pid, process.code)
    code, ended = process.code, process.ended or process.started or node.status.now
    cause = cause_of(node, process, end, traceback, tail)
    if process.reason and code is None:  # it was never started
        cause = signatures.recognise(process.reason) or Cause(Kind.NODE, "not-started", process.reason, "fab doctor")
        cause = _cut_off(NEVER_RELEASED) if process.reason == NEVER_RELEASED else cause
    skew, lived_s = node.status.skew_s, ended - (process.started or ended)
    weight = _weight(cause, code or 0, process.state == "stopped")
    where = (node.host, node.status.node.rank, None)
    name = process.name
    return Failure(ended - skew, *where, code, cause, weight, traceback, last_lines(tail), path, lived_s, name)


def _lost_process(node: NodeEvidence, process: ProcessStatus) -> Failure:
    last = (process.last_line.time if process.last_line else process.started) or node.status.now
    if "restarted" in process.reason:
        cause = Cause(
            Kind.NODE, "node-rebooted", "the node was restarted while it ran", "see its logs: journalctl -b -1 -e"
        )
    else:
        words = f"the supervisor of {process.name} was killed: its exit code was not recorded"
        cause = Cause(Kind.KILLED, "supervisor-killed", words, "see who did it there: the OOM killer, an administrator")
    rank = process.ranks[0].rank if process.ranks else None
    label: Label = "agent" if rank is None else rank
    _, path, tail = find_traceback(node, label, logs_of(node, label))
    where = (node.host, node.status.node.rank, rank if _is_rank(process) else None)
    return Failure(last - node.status.skew_s, *where, None, cause, LOST, None, last_lines(tail), path)

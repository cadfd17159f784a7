"""Collect the failures of ranks, launchers and nodes of a job. Every rank is examined, whatever its end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.status import ACTIVE, CUT_OFF, ProcessStatus, RankStatus, describe_exit_code
from torchfab.remote.job.start_barrier import NEVER_RELEASED
from torchfab.why import signatures
from torchfab.why.attribution import (
    CERTAIN,
    KILL,
    PROBABLE,
    Attribution,
    attribute,
    attribute_log,
    dead_gpu,
    gpu_cause,
    last_lines,
    logs_of,
    reports_of,
)
from torchfab.why.causes import Cause, Kind
from torchfab.why.evidence import Evidence, Label, NodeEvidence, RankEnd
from torchfab.why.frames import crashed_in
from torchfab.why.log_reading import EvidenceLine, Reading, last_words, read
from torchfab.why.tracebacks import Traceback

# How likely a failure is the first cause, the likeliest first. The time of a lost node is only its last sign of life;
# a process may have been killed by the rank whose exception is printed a moment later. VAGUE: raised where lost peers
# are reported, but in no words of a lost peer.
ROOT, LOST, SHOT, VAGUE, SYMPTOM, CONSEQUENCE = range(6)
# A rank that ended with exit code 0 this long after an exception had continued after it.
_WENT_ON_S = 15.0
# How much later than the first failure of a rank SIGTERM is a consequence of it. The head gets it as soon as a node has
# ended (`torchfab.remote.shims.rsh`), 0.2 s after the rank on a fast machine.
_SENT_AFTER_S, _HEAD_AFTER_S = 0.3, 0.0
_HEAD = "head"  # the name of the process that starts the launcher of `launchers/head_node.py`
_SIGNAL_CODES = (-15, -9, -2, -1, 143, 137)
_BY_SIGTERM = ("terminated", "asked", "ended", "by-launcher", "by-supervisor", "stopped")
_ENDED_BY_OTHERS = ("stopped", "ended", "by-launcher", "by-supervisor")


@dataclass(frozen=True)
class Failure:
    """A failed rank, process or node.

    Parameters
    ----------
    time : float
        When its cause was written or recorded, in seconds since the epoch; if it was lost, its last sign of life.
    host, node_rank, rank : str, int, int or None
        Where it ran; `rank` is None for a launcher process or a whole node.
    process : str
        Name of the launcher process: `agent`, `head`; empty for a rank or a whole node.
    code : int, optional
        Exit code, negative for a signal; None if it was not recorded, or if the process is still running.
    cause : Cause
        Why it failed.
    weight : int
        ROOT, LOST, SHOT, VAGUE, SYMPTOM or CONSEQUENCE: how likely it is the first cause.
    traceback : Traceback, optional
        The one that ended it.
    lines : tuple of str
        The last lines of its log.
    path : str
        Path of that log on the node.
    lived_s : float
        How long it ran, in seconds.
    certainty : str
        The certainty of its cause.
    evidence : tuple of EvidenceLine
        The log lines that support its cause.
    is_running : bool
        Whether its process is still running.
    crashed_in : str
        Where Python was when a signal ended it, if faulthandler reported that.
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
    certainty: str = CERTAIN
    evidence: tuple[EvidenceLine, ...] = ()
    is_running: bool = False
    crashed_in: str = ""

    @property
    def place(self) -> str:
        """Where in the script it failed: `FILE:LINE, in FUNCTION`; empty if that is not known."""
        if self.traceback is not None and self.rank is not None:
            return self.traceback.place
        return self.crashed_in if self.cause.name == "crash" else ""

    @property
    def label(self) -> str:
        """Human-readable name: `rank 3 on node1`, `the agent on node1`, `node1`."""
        if self.rank is not None:
            return f"rank {self.rank} on {self.host}"
        return f"the {self.process} on {self.host}" if self.process else self.host


# The first line of what a launcher itself prints after a rank has failed: torchrun, DeepSpeed, Open MPI, MPICH.
_LAUNCHER_REPORT = re.compile(
    r"^.*(?:failed \(exitcode: |ChildFailedError|sigkill_handler|^-{60,}$|processes exited with|BAD TERMINATION).*",
    re.MULTILINE,
)


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
    failures = [failure for node in evidence.nodes for failure in _node_failures(node, evidence)]
    if failures:  # nothing has failed: the ranks continued after the tracebacks in their logs
        failures += [failure for node in evidence.nodes for failure in _hidden_failures(node, evidence, failures)]
    failures = [*map(_ended_before(failures), map(_ended_by_a_head(failures), failures))]
    if not any(failure.weight == ROOT for failure in failures):
        failures = [_of_dead_gpu(failure, evidence) for failure in failures]
    return sorted(failures, key=lambda failure: failure.time)


def _of_dead_gpu(failure: Failure, evidence: Evidence) -> Failure:
    """Return a failure without a cause of its own as that of a GPU which the kernel reports to have stopped before."""
    node = next(each for each in evidence.nodes if each.host == failure.host)
    found = dead_gpu(node) if failure.rank is not None else None
    if found is None or found[0].time > failure.time or failure.weight == LOST:
        return failure
    line, pid = found
    if pid is not None and pid != _pid_of(failure, node):
        return failure
    return replace(
        failure,
        time=line.time,
        cause=gpu_cause(line),
        weight=ROOT,
        certainty=PROBABLE,
        evidence=(line, *failure.evidence),
    )


def _pid_of(failure: Failure, node: NodeEvidence) -> int | None:
    return next((rank.pid for rank in node.status.ranks if rank.rank == failure.rank), None)


def _ended_before(failures: list[Failure]) -> Callable[[Failure], Failure]:
    """Return what makes a signal of an unknown sender a cause if nothing had failed before it."""
    first = min((each.time for each in failures if each.cause.name != "ended"), default=0.0)

    def weigh(failure: Failure) -> Failure:
        is_first = failure.cause.name == "ended" and failure.rank is not None and failure.time < first
        return replace(failure, weight=SHOT) if is_first and failure.weight == CONSEQUENCE else failure

    return weigh


def _ended_by_a_head(failures: list[Failure]) -> Callable[[Failure], Failure]:
    """Return what makes a SIGTERM a consequence of a rank's failure: the launcher on the head sends it, or gets it."""
    own = [each.time for each in failures if each.rank is not None and each.cause.name not in _BY_SIGTERM]
    first = min(own, default=float("inf"))

    def weigh(failure: Failure) -> Failure:
        after_s = _HEAD_AFTER_S if failure.process == _HEAD else _SENT_AFTER_S
        is_later = failure.cause.name == "terminated" and failure.time > first + after_s
        return replace(failure, weight=CONSEQUENCE) if is_later else failure

    return weigh


# ---- one node


def _node_failures(node: NodeEvidence, evidence: Evidence) -> Iterator[Failure]:
    if node.status.state == "lost" and not node.status.processes:
        cause = Cause(Kind.NODE, "node-lost", node.status.reason, "launch it again, with another --name")
        if node.status.reason == CUT_OFF:
            cause = _cut_off(CUT_OFF)
        yield Failure(node.status.now - node.status.skew_s, node.host, node.status.node.rank, None, None, cause, LOST)
    for process in node.status.processes:
        yield from _process_failures(node, process, evidence)


def _cut_off(words: str) -> Cause:
    return Cause(Kind.KILLED, "launch-cut-off", words, "fab stop, then launch it again")


def _process_failures(node: NodeEvidence, process: ProcessStatus, evidence: Evidence) -> Iterator[Failure]:
    ranks = _failed_ranks(process)
    for rank in ranks:
        yield _rank_failure(node, process, _end_of(rank), evidence)
    state, code = process.state, process.code
    if state == "lost":
        yield _lost_process(node, process)
    elif code is not None and code < 0 and not _is_rank(process):
        yield _launcher_failure(node, process, evidence)
    elif state == "failed" and not ranks:
        for reported in process.reported[:1]:
            ended = process.ended or node.status.now
            end = RankEnd(reported.rank, 0, reported.code, process.started, ended)
            yield _rank_failure(node, process, end, evidence)
        if not process.reported:
            yield _launcher_failure(node, process, evidence)


def _end_of(rank: RankStatus) -> RankEnd:
    return RankEnd(rank.rank, rank.pid, rank.code, rank.started, rank.ended, rank.attempt)


def _last_attempt(process: ProcessStatus) -> list[RankStatus]:
    last = max((rank.attempt for rank in process.ranks), default=0)
    return [rank for rank in process.ranks if rank.attempt == last]


def _failed_ranks(process: ProcessStatus) -> list[RankStatus]:
    """Return the ranks of the last attempt that ended with a nonzero exit code."""
    return [rank for rank in _last_attempt(process) if rank.ended and rank.code]


def _is_rank(process: ProcessStatus) -> bool:
    return any(rank.pid == process.pid and rank.pid for rank in process.ranks)


def _others(node: NodeEvidence, evidence: Evidence) -> tuple[NodeEvidence, ...]:
    return tuple(each for each in evidence.nodes if each is not node)


def _read(node: NodeEvidence, label: int | str | None, attempt: int | None = None) -> Reading:
    reading = read(logs_of(node, label), reports_of(node, label, attempt))
    if reading.text.strip() or reading.traceback or label == "agent":
        return reading
    # It printed nothing into a log of its own: what is in the launcher's log may be its words.
    logs = [replace(log, text=_LAUNCHER_REPORT.split(log.text)[0]) for log in logs_of(node, "agent")]
    return replace(reading, last_words=last_words(logs))


def _rank_failure(node: NodeEvidence, process: ProcessStatus, rank: RankEnd, evidence: Evidence) -> Failure:
    reading = _read(node, rank.rank, rank.attempt)
    found = attribute(node, process, rank, reading, _others(node, evidence))
    ended, before = (rank.ended or node.status.now) - node.status.skew_s, found
    weight = _weight(found.cause, rank.code, _has_failed_before(process, rank) or process.state == "stopped")
    was_ended = weight in (CONSEQUENCE, SHOT) or (rank.code in _SIGNAL_CODES and not found.by_traceback)
    if was_ended and (own := attribute_log(node, reading, _others(node, evidence))):
        # It had raised before something ended it.
        found, weight = own, _weight(own.cause, 1, False)
    written = reading.time if found.by_traceback and reading.time and reading.is_final else ended
    return Failure(
        time=min(written, ended) if found.by_traceback else ended,
        host=node.host,
        node_rank=node.status.node.rank,
        rank=rank.rank,
        code=rank.code,
        cause=found.cause if found.cause.name != "unknown" or weight else before.cause,
        weight=weight,
        traceback=reading.traceback,
        lines=last_lines(reading.text),
        path=reading.path,
        lived_s=ended + node.status.skew_s - (rank.started or ended + node.status.skew_s),
        certainty=found.certainty,
        evidence=found.lines or _exit_record(node, f"rank {rank.rank}", rank.code, ended),
        crashed_in=crashed_in(reading.text),
    )


def _exit_record(node: NodeEvidence, who: str, code: int | None, ended: float) -> tuple[EvidenceLine, ...]:
    """Return the evidence of a cause that neither a log nor the kernel names: the recorded end."""
    how = (
        "is still running, or its exit code was not recorded"
        if code is None
        else f"ended with {describe_exit_code(code)}"
    )
    return (EvidenceLine(node.host, "exit record", 0, ended, f"{who} {how}"),)


def _has_failed_before(process: ProcessStatus, rank: RankEnd) -> bool:
    return any((each.ended or 0.0) < (rank.ended or 0.0) for each in _failed_ranks(process))


def _weight(cause: Cause, code: int | None, others_before: bool) -> int:
    if cause.name in _ENDED_BY_OTHERS:
        return CONSEQUENCE
    if code == KILL and cause.name == "killed":
        return CONSEQUENCE if others_before else SHOT
    if (
        cause.name == "terminated"
    ):  # ranks that agree to end also exit like this if only one of them received the signal
        return SHOT
    if cause.is_symptom:
        return VAGUE if cause.name == "exception" else SYMPTOM
    return ROOT


# ---- ranks without a recorded failure


def _hidden_failures(node: NodeEvidence, evidence: Evidence, failures: list[Failure]) -> Iterator[Failure]:
    """Yield the failures of ranks that are running, or whose exit code is 0 or unknown, after an exception."""
    known = {failure.rank for failure in failures if failure.rank is not None}
    for process in node.status.processes:
        for rank in _last_attempt(process):
            if rank.rank is None or rank.rank in known:
                continue
            if found := _hidden_failure(node, process, _end_of(rank), evidence):
                yield found


def _hidden_failure(node: NodeEvidence, process: ProcessStatus, rank: RankEnd, evidence: Evidence) -> Failure | None:
    reading = _read(node, rank.rank, rank.attempt)
    found = attribute_log(node, reading, _others(node, evidence))
    code, ended = rank.code, rank.ended
    if found is None or (code == 0 and ended and ended - node.status.skew_s - reading.time > _WENT_ON_S):
        if code == 0 or not ended or process.state in ACTIVE:
            return None
        found = _unrecorded_end(node, process, rank, reading)
    skew = node.status.skew_s
    end = (ended or node.status.now) - skew
    return Failure(
        time=min(reading.time or end, end) if found.by_traceback else end,
        host=node.host,
        node_rank=node.status.node.rank,
        rank=rank.rank,
        code=code,
        cause=found.cause,
        weight=_weight(found.cause, code, False) if found.by_traceback else CONSEQUENCE,
        traceback=reading.traceback if found.by_traceback else None,
        lines=last_lines(reading.text),
        path=reading.path,
        lived_s=(ended or node.status.now) - (rank.started or ended or node.status.now),
        certainty=found.certainty,
        evidence=found.lines or _exit_record(node, f"rank {rank.rank}", code, end),
        is_running=not ended,
    )


def _unrecorded_end(node: NodeEvidence, process: ProcessStatus, rank: RankEnd, reading: Reading) -> Attribution:
    """Return the end of a rank that its launcher reaped before the exit code could be read."""
    found = attribute(node, process, replace(rank, code=None), replace(reading, traceback=None, match=None))
    if found.cause.name != "unknown":
        return found
    ended_by = replace(
        found.cause, name="by-launcher", words="it ended with its launcher; its exit code was not recorded"
    )
    return replace(found, cause=ended_by)


# ---- launchers


def _launcher_failure(node: NodeEvidence, process: ProcessStatus, evidence: Evidence) -> Failure:
    """Return the failure of a process that is not a rank: torchrun, mpirun."""
    reading = _read(node, "agent")
    end = RankEnd(None, process.pid, process.code)
    code, ended = process.code, process.ended or process.started or node.status.now
    found = attribute(node, process, end, reading, _others(node, evidence))
    cause = found.cause
    if process.reason and code is None:  # it was never started
        cause = signatures.recognise(process.reason) or Cause(Kind.NODE, "not-started", process.reason, "fab doctor")
        cause = _cut_off(NEVER_RELEASED) if process.reason == NEVER_RELEASED else cause
    skew, lived_s = node.status.skew_s, ended - (process.started or ended)
    weight = _weight(cause, code or 0, process.state == "stopped")
    if cause.name == "launcher":
        weight = SYMPTOM  # it fails when its ranks do
    return Failure(
        *(ended - skew, node.host, node.status.node.rank, None, code, cause, weight, reading.traceback),
        *(last_lines(reading.text), reading.path, lived_s, process.name, found.certainty),
        found.lines or _exit_record(node, process.name, code, ended - skew),
    )


def _lost_process(node: NodeEvidence, process: ProcessStatus) -> Failure:
    last = (process.last_line.time if process.last_line else process.started) or node.status.now
    if "restarted" in process.reason:
        cause = Cause(
            Kind.NODE,
            "node-rebooted",
            "the node was restarted while it ran",
            "see the node's logs: journalctl -b -1 -e",
        )
    else:
        words = f"the supervisor of {process.name} was killed: its exit code was not recorded"
        cause = Cause(
            Kind.KILLED, "supervisor-killed", words, "find out what killed it: the OOM killer, an administrator"
        )
    rank = process.ranks[0].rank if process.ranks else None
    label: Label = "agent" if rank is None else rank
    reading = _read(node, label)
    where = (node.host, node.status.node.rank, rank if _is_rank(process) else None)
    return Failure(last - node.status.skew_s, *where, None, cause, LOST, None, last_lines(reading.text), reading.path)

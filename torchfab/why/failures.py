"""The ends of a job that were no success, of ranks, launchers and nodes, and which of them was the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchfab.core.status import CUT_OFF
from torchfab.remote.job.start_barrier import NEVER_LET_GO
from torchfab.why import signatures
from torchfab.why.causes import Cause, Kind
from torchfab.why.classify import KILL, cause_of, last_lines, logs_of, words_of
from torchfab.why.evidence import Evidence, NodeEvidence
from torchfab.why.tracebacks import Traceback

# How likely an end is the first cause, the likeliest first. A lost node's time is only that of its last sign of life.
ROOT, LOST, SYMPTOM, CONSEQUENCE = range(4)


@dataclass(frozen=True)
class Failure:
    """The end of a rank, of another process, or of a node, that was no success.

    Parameters
    ----------
    time : float
        When, in seconds since the epoch; of what was lost, its last sign of life.
    host, node_rank, rank : str, int, int or None
        Where; no rank for a launcher's process or a whole node.
    process : str
        Name of the launcher's process: `agent`, `head`; empty for a rank, or a whole node.
    code : int, optional
        Exit code, negative for a signal; None where nobody wrote it down.
    cause : Cause
        Why.
    weight : int
        ROOT, LOST, SYMPTOM or CONSEQUENCE.
    traceback : Traceback, optional
        The last one in its log.
    lines : tuple of str
        The last lines of its log.
    path : str
        The log that these are of.
    lived_s : float
        How long it ran.
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
    def who(self) -> str:
        """Its name for people: `rank 3 on node1`, `the agent on node1`, `node1`."""
        if self.rank is not None:
            return f"rank {self.rank} on {self.host}"
        return f"the {self.process} on {self.host}" if self.process else self.host


def all_ends(evidence: Evidence) -> list[Failure]:
    """Return the ends that were no success, the first first."""
    found = [end for node in evidence.nodes for end in _of_node(node)]
    return sorted(found, key=lambda end: end.time)


def first_of(ends: Sequence[Failure], slack_s: float = 5.0) -> Failure | None:
    """Return the end that the others follow from; None where there is none.

    The earliest root; what another rank saw of it may have been written down up to `slack_s` seconds earlier: clocks
    differ, and a process takes its time to die. A symptom that is older than that has another cause.
    """
    if not ends:
        return None
    likeliest = min(ends, key=lambda end: (end.weight, end.time))
    earlier = [end for end in ends if end.weight < CONSEQUENCE and end.time < likeliest.time - slack_s]
    return first_of(earlier, slack_s) if earlier and likeliest.weight != LOST else likeliest


# ---- one node


def _of_node(node: NodeEvidence) -> Iterator[Failure]:
    if node.status.state == "lost" and not node.status.processes:
        cause = Cause(Kind.NODE, "node-lost", node.status.reason, "launch it again, with another --name")
        if node.status.reason == CUT_OFF:
            cause = _cut_off(CUT_OFF)
        yield Failure(node.status.now - node.status.skew_s, node.host, node.status.node.rank, None, None, cause, LOST)
    for process in node.status.processes:
        yield from _of_process(node, process)


def _cut_off(words: str) -> Cause:
    return Cause(Kind.KILLED, "launch-cut-off", words, "fab stop, then launch it again")


def _of_process(node: NodeEvidence, process: Mapping[str, Any]) -> Iterator[Failure]:
    ranks = _failed_ranks(process)
    for rank in ranks:
        yield _of_rank(node, process, rank)
    state, code = process["state"], process["code"]
    if state == "lost":
        yield _of_lost(node, process)
    elif code is not None and code < 0 and not _is_rank(process):
        yield _of_launcher(node, process)
    elif state == "failed" and not ranks:
        for told in process["reported"][:1]:
            ended = process["ended"] or node.status.now
            yield _of_rank(node, process, {**told, "ended": ended, "started": process["started"], "pid": 0})
        if not process["reported"]:
            yield _of_launcher(node, process)


def _failed_ranks(process: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the ranks of the last attempt that ended with a code that is not 0."""
    last = max((rank["attempt"] for rank in process["ranks"]), default=0)
    return [rank for rank in process["ranks"] if rank["attempt"] == last and rank["ended"] and rank["code"]]


def _is_rank(process: Mapping[str, Any]) -> bool:
    return any(rank["pid"] == process["pid"] and rank["pid"] for rank in process["ranks"])


def _of_rank(node: NodeEvidence, process: Mapping[str, Any], rank: Mapping[str, Any]) -> Failure:
    logs = logs_of(node, rank["rank"])
    traceback, path, tail = words_of(node, rank["rank"], logs, rank.get("attempt"))
    cause = cause_of(node, process, rank, traceback, tail)
    before = [each for each in _failed_ranks(process) if each["ended"] < rank["ended"]]
    return Failure(
        time=rank["ended"] - node.status.skew_s,
        host=node.host,
        node_rank=node.status.node.rank,
        rank=rank["rank"],
        code=rank["code"],
        cause=cause,
        weight=_weight(cause, rank["code"], bool(before) or process["state"] == "stopped"),
        traceback=traceback,
        lines=last_lines(tail),
        path=path,
        lived_s=rank["ended"] - (rank["started"] or rank["ended"]),
    )


def _weight(cause: Cause, code: int, others_before: bool) -> int:
    if cause.name in ("stopped", "ended", "by-launcher", "by-supervisor"):
        return CONSEQUENCE
    if code == KILL and cause.name == "killed" and others_before:
        return CONSEQUENCE
    return SYMPTOM if cause.is_symptom else ROOT


def _of_launcher(node: NodeEvidence, process: Mapping[str, Any]) -> Failure:
    """Return the end of a process that is no rank: torchrun, mpirun."""
    traceback, path, tail = words_of(node, "agent", logs_of(node, "agent"))
    pseudo = {"rank": None, "pid": process["pid"], "code": process["code"]}
    code, ended = process["code"], process["ended"] or process["started"] or node.status.now
    cause = cause_of(node, process, pseudo, traceback, tail)
    if process["reason"] and code is None:  # it was never started
        cause = signatures.recognise(process["reason"]) or Cause(
            Kind.NODE, "not-started", process["reason"], "fab doctor"
        )
        cause = _cut_off(NEVER_LET_GO) if process["reason"] == NEVER_LET_GO else cause
    skew, lived_s = node.status.skew_s, ended - (process["started"] or ended)
    weight = _weight(cause, code or 0, process["state"] == "stopped")
    where = (node.host, node.status.node.rank, None)
    name = process["name"]
    return Failure(ended - skew, *where, code, cause, weight, traceback, last_lines(tail), path, lived_s, name)


def _of_lost(node: NodeEvidence, process: Mapping[str, Any]) -> Failure:
    last = (process["last_line"] or {"time": process["started"]})["time"] or node.status.now
    if "restarted" in process["reason"]:
        cause = Cause(
            Kind.NODE, "node-rebooted", "the node was restarted while it ran", "see its logs: journalctl -b -1 -e"
        )
    else:
        words = f"the supervisor of {process['name']} was killed: nobody was left to write down how that ended"
        cause = Cause(Kind.KILLED, "supervisor-killed", words, "see who did it there: the OOM killer, an administrator")
    label = process["ranks"][0]["rank"] if process["ranks"] else "agent"
    _, path, tail = words_of(node, label, logs_of(node, label))
    rank = process["ranks"][0]["rank"] if _is_rank(process) else None
    where = (node.host, node.status.node.rank, rank)
    return Failure(last - node.status.skew_s, *where, None, cause, LOST, None, last_lines(tail), path)

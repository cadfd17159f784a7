"""How each rank ended, and why, as far as its own node tells: its traceback, its log, its exit code, its kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchfab.logview import clean
from torchfab.status import code_words
from torchfab.why import causes, tracebacks
from torchfab.why.causes import Cause, Kind
from torchfab.why.evidence import Evidence, Label, Log, NodeEvidence
from torchfab.why.tracebacks import Traceback

# How likely an end is the first cause, the likeliest first. A lost node's time is only that of its last sign of life.
ROOT, LOST, SYMPTOM, CONSEQUENCE = range(4)
_ASKED = {
    "SIGHUP": "its tmux window was closed",
    "SIGINT": "Ctrl-C was typed into its tmux window, or SIGINT was sent to its supervisor",
    "SIGTERM": "SIGTERM was sent to its supervisor, and not by fab stop",
    "SIGQUIT": "SIGQUIT was sent to its supervisor, or typed into its tmux window",
}
_ASK = "ask who did it: an administrator, a script"
_KILL, _ENDINGS = -9, (-15, -2, -1)
_TAIL_LINES = 60
_TORCHRUN_TOLD = re.compile(r"Received (?:Signals\.)?(?P<signal>SIG\w+|\d+) death signal, shutting down workers")


@dataclass(frozen=True)
class End:
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


def all_ends(evidence: Evidence) -> list[End]:
    """Return the ends that were no success, the first first."""
    found = [end for node in evidence.nodes for end in _of_node(node)]
    return sorted(found, key=lambda end: end.time)


def first_of(ends: Sequence[End], slack_s: float = 5.0) -> End | None:
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


def _of_node(node: NodeEvidence) -> Iterator[End]:
    if node.status.state == "lost" and not node.status.processes:
        cause = Cause(Kind.NODE, "node-lost", node.status.reason, "launch it again, with another --name")
        yield End(node.status.now - node.status.skew_s, node.host, node.status.node.rank, None, None, cause, LOST)
    for process in node.status.processes:
        yield from _of_process(node, process)


def _of_process(node: NodeEvidence, process: Mapping[str, Any]) -> Iterator[End]:
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
            yield _of_rank(node, process, {**told, "ended": process["ended"], "started": process["started"], "pid": 0})
        if not process["reported"]:
            yield _of_launcher(node, process)


def _failed_ranks(process: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the ranks of the last attempt that ended with a code that is not 0."""
    last = max((rank["attempt"] for rank in process["ranks"]), default=0)
    return [rank for rank in process["ranks"] if rank["attempt"] == last and rank["ended"] and rank["code"]]


def _is_rank(process: Mapping[str, Any]) -> bool:
    return any(rank["pid"] == process["pid"] and rank["pid"] for rank in process["ranks"])


def _of_rank(node: NodeEvidence, process: Mapping[str, Any], rank: Mapping[str, Any]) -> End:
    logs = _logs(node, rank["rank"])
    traceback, path, tail = _words(node, rank["rank"], logs)
    cause = _cause(node, process, rank, traceback, tail)
    before = [each for each in _failed_ranks(process) if each["ended"] < rank["ended"]]
    return End(
        time=rank["ended"] - node.status.skew_s,
        host=node.host,
        node_rank=node.status.node.rank,
        rank=rank["rank"],
        code=rank["code"],
        cause=cause,
        weight=_weight(cause, rank["code"], bool(before) or process["state"] == "stopped"),
        traceback=traceback,
        lines=_last_lines(tail),
        path=path,
        lived_s=rank["ended"] - (rank["started"] or rank["ended"]),
    )


def _weight(cause: Cause, code: int, others_before: bool) -> int:
    if cause.name in ("stopped", "terminated"):
        return CONSEQUENCE
    if code == _KILL and cause.name == "killed" and others_before:
        return CONSEQUENCE
    return SYMPTOM if cause.is_symptom else ROOT


def _of_launcher(node: NodeEvidence, process: Mapping[str, Any]) -> End:
    """Return the end of a process that is no rank: torchrun, mpirun."""
    traceback, path, tail = _words(node, "agent", _logs(node, "agent"))
    pseudo = {"rank": None, "pid": process["pid"], "code": process["code"]}
    code, ended = process["code"], process["ended"] or process["started"] or node.status.now
    cause = _cause(node, process, pseudo, traceback, tail)
    if process["reason"] and code is None:  # it was never started
        cause = causes.recognise(process["reason"]) or Cause(Kind.NODE, "not-started", process["reason"], "fab doctor")
    skew, lived_s = node.status.skew_s, ended - (process["started"] or ended)
    weight = _weight(cause, code or 0, process["state"] == "stopped")
    where = (node.host, node.status.node.rank, None)
    name = process["name"]
    return End(ended - skew, *where, code, cause, weight, traceback, _last_lines(tail), path, lived_s, name)


def _of_lost(node: NodeEvidence, process: Mapping[str, Any]) -> End:
    last = (process["last_line"] or {"time": process["started"]})["time"] or node.status.now
    reason = process["reason"]
    if "restarted" in reason:
        cause = Cause(
            Kind.NODE, "node-rebooted", "the node was restarted while it ran", "see its logs: journalctl -b -1 -e"
        )
    else:
        words = f"{reason}, and no one was left to write down how it ended"
        cause = Cause(Kind.KILLED, "supervisor-killed", words, "see who did it there: the OOM killer, an administrator")
    label = process["ranks"][0]["rank"] if process["ranks"] else "agent"
    _, path, tail = _words(node, label, _logs(node, label))
    where = (node.host, node.status.node.rank, None)
    return End(last - node.status.skew_s, *where, None, cause, LOST, None, _last_lines(tail), path)


# ---- its words


def _logs(node: NodeEvidence, label: Label | None) -> list[Log]:
    """Return the logs of a rank, or of the launcher, the last written first.

    A rank that lived too short to be seen has logs under `local N`.
    """
    own = [log for log in node.logs if log.label == label]
    own = own or [log for log in node.logs if isinstance(log.label, str) and log.label.startswith("local ")]
    return sorted(own, key=lambda log: -log.written)


def _words(node: NodeEvidence, label: Label | None, logs: Sequence[Log]) -> tuple[Traceback | None, str, str]:
    """Return the last traceback, the path of the log that holds it, or else of that written last, and its text."""
    reports = [report for report in node.reports if report.label == label]
    for report in sorted(reports, key=lambda report: -report.attempt)[:1]:
        if found := tracebacks.last_in(report.traceback):
            return found, _path(logs), logs[0].text if logs else ""
    for log in logs:
        if found := tracebacks.last_in(log.text):
            return found, log.path, log.text
    return None, _path(logs), "\n".join(log.text for log in reversed(logs))


def _path(logs: Sequence[Log]) -> str:
    return logs[0].path if logs else ""


def _last_lines(text: str, count: int = 5) -> tuple[str, ...]:
    lines = [clean(line) for line in text.splitlines() if line.strip()]
    return tuple(line[:300] for line in lines[-count:])


# ---- its cause


def _cause(
    node: NodeEvidence, process: Mapping[str, Any], rank: Mapping[str, Any], traceback: Traceback | None, tail: str
) -> Cause:
    code = rank["code"]
    if code in (_KILL, *_ENDINGS):
        return _signalled(node, process, code, rank["pid"])
    if traceback and (cause := causes.recognise(traceback.exception)):
        return cause
    last = "\n".join(tail.splitlines()[-_TAIL_LINES:])
    if (not traceback or code is None or code < 0) and (cause := causes.recognise(last)):
        return cause
    return _own_doing(code, traceback) if rank["rank"] is not None else _launcher_s(process["name"], code, traceback)


def _launcher_s(name: str, code: int | None, traceback: Traceback | None) -> Cause:
    words = f"raised {traceback.last_line[:300]}" if traceback else f"ended with {code_words(code or 0)}"
    fix = "see its last lines; what it runs: fab launch-... --dry-run"
    return Cause(Kind.UNKNOWN, "launcher", f"the {name} {words}, and no rank is known to have failed before", fix)


def _own_doing(code: int | None, traceback: Traceback | None) -> Cause:
    if code is not None and code < 0:
        fix = "fab logs shows its last lines; to see where: --env PYTHONFAULTHANDLER=1"
        return Cause(Kind.SCRIPT, "crash", f"it crashed in native code ({code_words(code)})", fix)
    if traceback and code in (1, None):
        return Cause(Kind.SCRIPT, "exception", f"the script raised {traceback.last_line[:300]}", "see the traceback")
    if code is None:
        return Cause(Kind.UNKNOWN, "unknown", "nobody wrote down how it ended")
    return Cause(Kind.SCRIPT, "exit-code", f"the script ended itself with exit code {code}", "see its last lines")


def _signalled(node: NodeEvidence, process: Mapping[str, Any], code: int, pid: int | None) -> Cause:
    end = node.ends.get(process["name"], {})
    asked = end.get("asked")
    if node.status.stop_asked is not None:
        return Cause(Kind.STOPPED, "stopped", "fab stop ended it")
    if asked and (code != _KILL or end.get("killed")):
        return Cause(Kind.KILLED, "asked", _ASKED.get(asked, f"its supervisor got {asked}"))
    return _killed(node, process, pid) if code == _KILL else _terminated(node, code)


def _killed(node: NodeEvidence, process: Mapping[str, Any], pid: int | None) -> Cause:
    by_kernel = next((line.text for line in node.kernel if pid and f"Killed process {pid} " in f"{line.text} "), "")
    count = node.ends.get(process["name"], {}).get("oom_kills", 0)
    fix = "less memory per rank (data loader workers, caches), or a higher limit of its control group"
    if by_kernel:
        return Cause(Kind.MEMORY, "host-memory", f"the kernel's OOM killer ended it: {by_kernel}", fix)
    if count > 0:
        times = "once" if count == 1 else f"{count} times"
        words = f"SIGKILL ended it, and the OOM killer struck {times} in its control group meanwhile"
        return Cause(Kind.MEMORY, "host-memory", words, fix)
    words = "SIGKILL came from outside: nothing that torchfab did"
    if node.kernel_unread:
        words += f"; it may have been the OOM killer: the kernel's log cannot be read ({node.kernel_unread})"
        return Cause(Kind.KILLED, "killed", words, f"look there: sudo dmesg -T | grep -i kill (on {node.host})")
    return Cause(Kind.KILLED, "killed", f"{words}, nor the kernel's OOM killer", _ASK)


def _terminated(node: NodeEvidence, code: int) -> Cause:
    found = (_TORCHRUN_TOLD.search(log.text) for log in node.logs if log.label == "agent")
    told = next((match for match in found if match), None)
    words = f"torchrun was asked to end ({told['signal']}), and ended it" if told else f"{code_words(code)} ended it"
    return Cause(Kind.KILLED, "terminated", f"{words}; who sent it is not known", _ASK)

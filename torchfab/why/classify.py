"""Why one rank, or launcher, ended: judged by its traceback, its log, its exit code, its supervisor and its kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchfab.core.log_lines import clean
from torchfab.core.status import code_words
from torchfab.why import signal_sender, signatures, tracebacks
from torchfab.why.causes import Cause, Kind
from torchfab.why.evidence import Label, Log, NodeEvidence
from torchfab.why.tracebacks import Traceback

_ASKED = {
    "SIGHUP": "its tmux window was closed",
    "SIGINT": "Ctrl-C was typed into its tmux window, or SIGINT was sent to its supervisor",
    "SIGTERM": "SIGTERM was sent to its supervisor, and not by fab stop",
    "SIGQUIT": "SIGQUIT was sent to its supervisor, or typed into its tmux window",
}
KILL, _ABORT = -9, -6
_TAIL_LINES = 60
_ROOM_FOR_WORDS = 64 * 1024


def logs_of(node: NodeEvidence, label: Label | None) -> list[Log]:
    """Return the logs of a rank, or of the launcher, the last written first.

    A rank that lived too short to be seen has logs under `local N`.
    """
    own = [log for log in node.logs if log.label == label]
    own = own or [log for log in node.logs if isinstance(log.label, str) and log.label.startswith("local ")]
    return sorted(own, key=lambda log: -log.written)


def words_of(
    node: NodeEvidence, label: Label | None, logs: Sequence[Log], attempt: int | None = None
) -> tuple[Traceback | None, str, str]:
    """Return the last traceback, the path of the log that holds it, or else of that written last, and its text.

    Parameters
    ----------
    attempt : int, optional
        Of which attempt an error file may be: one before it may have failed of something else. Default: of the last.
    """
    reports = [report for report in node.reports if report.label == label and attempt in (None, report.attempt)]
    for report in sorted(reports, key=lambda report: -report.attempt)[:1]:
        if found := tracebacks.last_in(report.traceback):
            return found, _path(logs), logs[0].text if logs else ""
    for log in logs:
        if found := tracebacks.last_in(log.text):
            return found, log.path, log.text
    return None, _path(logs), "\n".join(log.text for log in reversed(logs))


def _path(logs: Sequence[Log]) -> str:
    return logs[0].path if logs else ""


def last_lines(text: str, count: int = 5) -> tuple[str, ...]:
    """Return the last lines of a log that say something, without what would steer a terminal."""
    lines = [clean(line) for line in text.splitlines() if line.strip()]
    return tuple(line[:300] for line in lines[-count:])


# ---- its cause


def cause_of(
    node: NodeEvidence, process: Mapping[str, Any], rank: Mapping[str, Any], traceback: Traceback | None, tail: str
) -> Cause:
    """Return why a rank, or a process that is none, ended.

    Parameters
    ----------
    process : Mapping
        The process that it is, or that it ran below, as the node tells of it.
    rank : Mapping
        `rank` (None for a process that is none), `pid` and `code`.
    traceback, tail : Traceback or None, str
        The last traceback in its log, and the end of that.
    """
    code = rank["code"]
    by_signal = code == KILL or signal_sender.may_be_by_signal(code, rank["rank"], node)
    if by_signal and (cause := _signalled(node, process, code, rank["pid"])):
        return cause
    if traceback and (cause := signatures.recognise(_exception(traceback))):
        return cause
    last = "\n".join(tail.splitlines()[-_TAIL_LINES:])
    if (not traceback or code is None or code < 0) and (cause := signatures.recognise(last)):
        return cause
    if not traceback and code and (cause := _speechless(node)):
        return cause
    return _own_doing(code, traceback) if rank["rank"] is not None else _launcher_s(process["name"], code, traceback)


def _exception(traceback: Traceback) -> str:
    """Return the exception; where a semaphore could not be made, after that: its message does not tell of what."""
    of_semaphore = ("synchronize.py", "__init__") in traceback.frames[-1:]
    return f"SemLock: {traceback.exception}" if of_semaphore else traceback.exception


def _speechless(node: NodeEvidence) -> Cause | None:
    """Say that the disk of its logs is full, where that is so: then no traceback could be written either."""
    disk = next(iter(node.disks), None)  # that of the job's folder
    if disk is None or not disk.size or disk.free >= _ROOM_FOR_WORDS:
        return None
    words = f"the disk of its logs is full, and it could not say why it failed: {disk.path}"
    return Cause(Kind.NODE, "disk-full", words, "free space there, or set torchfab.node_dir to another disk")


def _launcher_s(name: str, code: int | None, traceback: Traceback | None) -> Cause:
    words = f"raised {traceback.last_line[:300]}" if traceback else f"ended with {code_words(code or 0)}"
    fix = "see its last lines; what it runs: fab launch-... --dry-run"
    return Cause(Kind.UNKNOWN, "launcher", f"the {name} {words}, and no rank is known to have failed before", fix)


def _own_doing(code: int | None, traceback: Traceback | None) -> Cause:
    if traceback and code in (1, None, _ABORT):  # what torch's threads do when an exception ends Python
        return Cause(Kind.SCRIPT, "exception", f"the script raised {traceback.last_line[:300]}", "see the traceback")
    if code is not None and code < 0:
        fix = "fab logs shows its last lines; to see where: --env PYTHONFAULTHANDLER=1"
        return Cause(Kind.SCRIPT, "crash", f"it crashed in native code ({code_words(code)})", fix)
    if code is None:
        return Cause(Kind.UNKNOWN, "unknown", "nobody wrote down how it ended")
    return Cause(Kind.SCRIPT, "exit-code", f"the script ended itself with exit code {code}", "see its last lines")


def _signalled(node: NodeEvidence, process: Mapping[str, Any], code: int, pid: int | None) -> Cause | None:
    """Return who ended a process by a signal; None where its exit code alone is no proof that one did."""
    end = node.ends.get(process["name"], {})
    asked = end.get("asked")
    if node.status.stop_asked is not None:
        return Cause(Kind.STOPPED, "stopped", "fab stop ended it")
    if asked and (code != KILL or end.get("killed")):
        return Cause(Kind.KILLED, "asked", _ASKED.get(asked, f"its supervisor got {asked}"))
    if code == KILL:
        found = _out_of_memory(node, process, pid) or signal_sender.sender_of(node, process, code, pid)
        return found or _killed(node)
    found = signal_sender.sender_of(node, process, code, pid) or signal_sender.outsider(node, process, code, pid)
    return found or (_by_somebody(code) if code < 0 else None)


def _out_of_memory(node: NodeEvidence, process: Mapping[str, Any], pid: int | None) -> Cause | None:
    by_kernel = next((line.text for line in node.kernel if pid and f"Killed process {pid} " in f"{line.text} "), "")
    count = node.ends.get(process["name"], {}).get("oom_kills", 0)
    fix = "less memory per rank (data loader workers, caches), or a higher limit of its control group"
    if by_kernel:
        return Cause(Kind.MEMORY, "host-memory", f"the kernel's OOM killer ended it: {by_kernel}", fix)
    if count > 0:
        times = "once" if count == 1 else f"{count} times"
        words = f"SIGKILL ended it, and the OOM killer struck {times} in its control group meanwhile"
        return Cause(Kind.MEMORY, "host-memory", words, fix)
    return None


def _killed(node: NodeEvidence) -> Cause:
    words = "SIGKILL came from outside: nothing that torchfab did"
    if node.kernel_unread:
        words += f"; it may have been the OOM killer: the kernel's log cannot be read ({node.kernel_unread})"
        return Cause(Kind.KILLED, "killed", words, f"look there: sudo dmesg -T | grep -i kill (on {node.host})")
    return Cause(Kind.KILLED, "killed", f"{words}, nor the kernel's OOM killer", signal_sender.ASK)


def _by_somebody(code: int) -> Cause:
    words = f"{code_words(code)} ended it; who sent it is not known"
    return Cause(Kind.KILLED, "ended", words, signal_sender.ASK)

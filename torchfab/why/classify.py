"""Classify why a rank or a launcher process ended, by its traceback, log, exit code, supervisor and kernel log."""

from __future__ import annotations

from collections.abc import Sequence

from torchfab.core.log_lines import strip_controls
from torchfab.core.status import ProcessStatus, describe_exit_code
from torchfab.why import signal_sender, signatures, tracebacks
from torchfab.why.causes import Cause, Kind
from torchfab.why.evidence import Label, Log, NodeEvidence, RankEnd
from torchfab.why.tracebacks import Traceback

_SUPERVISOR_SIGNALS = {
    "SIGHUP": "its tmux window was closed",
    "SIGINT": "Ctrl-C was typed into its tmux window, or SIGINT was sent to its supervisor",
    "SIGTERM": "SIGTERM was sent to its supervisor, and not by fab stop",
    "SIGQUIT": "SIGQUIT was sent to its supervisor, or typed into its tmux window",
}
KILL, _ABORT = -9, -6
_TAIL_LINES = 60
_MIN_FREE_BYTES = 64 * 1024


def logs_of(node: NodeEvidence, label: Label | None) -> list[Log]:
    """Return the logs of a rank or of the launcher, the most recently written first.

    A rank that ended before its supervisor detected it has its logs under `local N`.

    Parameters
    ----------
    node : NodeEvidence
        The node that it ran on.
    label : int, str or None
        The rank, or `agent` for the launcher.

    Returns
    -------
    list of Log
        The logs with this label; without any, all logs of `local N`.
    """
    own = [log for log in node.logs if log.label == label]
    own = own or [log for log in node.logs if isinstance(log.label, str) and log.label.startswith("local ")]
    return sorted(own, key=lambda log: -log.written)


def find_traceback(
    node: NodeEvidence, label: Label | None, logs: Sequence[Log], attempt: int | None = None
) -> tuple[Traceback | None, str, str]:
    """Return the last traceback of a rank or launcher, with the path and the text of its log.

    Parameters
    ----------
    node : NodeEvidence
        The node that it ran on.
    label : int, str or None
        The rank, or `agent` for the launcher.
    logs : sequence of Log
        Its logs, the most recently written first.
    attempt : int, optional
        Use only the error file of this attempt: an earlier attempt may have failed for another reason. Default: that
        of the last attempt.

    Returns
    -------
    traceback : Traceback or None
        From the error file, otherwise from the logs.
    path : str
        The log that holds the traceback, otherwise the most recently written one; empty if there is none.
    text : str
        The text of that log; if no log holds a traceback, of all logs.
    """
    reports = [report for report in node.reports if report.label == label and attempt in (None, report.attempt)]
    for report in sorted(reports, key=lambda report: -report.attempt)[:1]:
        if found := tracebacks.last_traceback(report.traceback):
            return found, _path(logs), logs[0].text if logs else ""
    for log in logs:
        if found := tracebacks.last_traceback(log.text):
            return found, log.path, log.text
    return None, _path(logs), "\n".join(log.text for log in reversed(logs))


def _path(logs: Sequence[Log]) -> str:
    return logs[0].path if logs else ""


def last_lines(text: str, count: int = 5) -> tuple[str, ...]:
    """Return the last non-blank lines of a log, without terminal control sequences.

    Parameters
    ----------
    text : str
        The log.
    count : int
        Number of lines. Default 5.

    Returns
    -------
    tuple of str
        Each line cut to 300 characters.
    """
    lines = [strip_controls(line) for line in text.splitlines() if line.strip()]
    return tuple(line[:300] for line in lines[-count:])


# ---- classification


def cause_of(
    node: NodeEvidence, process: ProcessStatus, rank: RankEnd, traceback: Traceback | None, tail: str
) -> Cause:
    """Return why a rank, or a process that is not a rank, ended.

    Parameters
    ----------
    node : NodeEvidence
        The node that it ran on.
    process : ProcessStatus
        The process itself, or the launcher process that started the rank, as the node reports it.
    rank : RankEnd
        How it ended.
    traceback : Traceback or None
        The last traceback in its log.
    tail : str
        The end of its log.

    Returns
    -------
    Cause
        Of kind UNKNOWN if nothing explains the end.
    """
    code = rank.code
    by_signal = code == KILL or signal_sender.is_signal_exit(code, rank.rank, node)
    if code is not None and by_signal and (cause := _signal_cause(node, process, code, rank.pid)):
        return cause
    if traceback and (cause := signatures.recognise(_exception(traceback))):
        return cause
    last = "\n".join(tail.splitlines()[-_TAIL_LINES:])
    if (not traceback or code is None or code < 0) and (cause := signatures.recognise(last)):
        return cause
    if not traceback and code and (cause := _full_log_disk(node)):
        return cause
    if rank.rank is None:
        return _launcher_cause(process.name, code, traceback)
    return _script_cause(code, traceback)


def _exception(traceback: Traceback) -> str:
    """Return the exception, prefixed with `SemLock` if it was raised there: its message does not name the semaphore."""
    in_semlock = ("synchronize.py", "__init__") in traceback.frames[-1:]
    return f"SemLock: {traceback.exception}" if in_semlock else traceback.exception


def _full_log_disk(node: NodeEvidence) -> Cause | None:
    """Return a cause if the disk that holds the logs is full: then no traceback could be written either."""
    disk = next(iter(node.disks), None)  # the disk of the job's folder
    if disk is None or not disk.size or disk.free >= _MIN_FREE_BYTES:
        return None
    words = f"the disk that holds its logs is full, so no error could be logged: {disk.path}"
    return Cause(Kind.NODE, "disk-full", words, "free space there, or set torchfab.node_dir to another disk")


def _launcher_cause(name: str, code: int | None, traceback: Traceback | None) -> Cause:
    how = f"raised {traceback.last_line[:300]}" if traceback else f"ended with {describe_exit_code(code or 0)}"
    fix = "see its last lines; what it runs: fab launch-... --dry-run"
    return Cause(Kind.UNKNOWN, "launcher", f"the {name} {how}, and no rank is known to have failed before", fix)


def _script_cause(code: int | None, traceback: Traceback | None) -> Cause:
    if traceback and code in (1, None, _ABORT):  # torch's threads abort when an exception ends Python
        return Cause(Kind.SCRIPT, "exception", f"the script raised {traceback.last_line[:300]}", "see the traceback")
    if code is not None and code < 0:
        fix = "fab logs shows its last lines; to see where: --env PYTHONFAULTHANDLER=1"
        return Cause(Kind.SCRIPT, "crash", f"it crashed in native code ({describe_exit_code(code)})", fix)
    if code is None:
        return Cause(Kind.UNKNOWN, "unknown", "its exit code was not recorded")
    return Cause(Kind.SCRIPT, "exit-code", f"the script ended itself with exit code {code}", "see its last lines")


def _signal_cause(node: NodeEvidence, process: ProcessStatus, code: int, pid: int | None) -> Cause | None:
    """Return which signal ended a process and who sent it; None if the exit code alone does not prove a signal."""
    end = node.exit_records.get(process.name, {})
    signal = end.get("asked")
    if node.status.stop_asked is not None:
        return Cause(Kind.STOPPED, "stopped", "fab stop ended it")
    if signal and (code != KILL or end.get("killed")):
        return Cause(Kind.KILLED, "asked", _SUPERVISOR_SIGNALS.get(signal, f"its supervisor got {signal}"))
    if code == KILL:
        found = _out_of_memory(node, process, pid) or signal_sender.sender_of(node, process, code, pid)
        return found or _external_kill(node)
    found = signal_sender.sender_of(node, process, code, pid) or signal_sender.external_sender(node, process, code, pid)
    return found or (_unknown_sender(code) if code < 0 else None)


def _out_of_memory(node: NodeEvidence, process: ProcessStatus, pid: int | None) -> Cause | None:
    by_kernel = next((line.text for line in node.kernel if pid and f"Killed process {pid} " in f"{line.text} "), "")
    count = node.exit_records.get(process.name, {}).get("oom_kills", 0)
    fix = "less memory per rank (data loader workers, caches), or a higher limit of its control group"
    if by_kernel:
        return Cause(Kind.MEMORY, "host-memory", f"the kernel's OOM killer ended it: {by_kernel}", fix)
    if count > 0:
        times = "once" if count == 1 else f"{count} times"
        words = f"SIGKILL ended it, and the OOM killer struck {times} in its control group meanwhile"
        return Cause(Kind.MEMORY, "host-memory", words, fix)
    return None


def _external_kill(node: NodeEvidence) -> Cause:
    words = "SIGKILL came from outside: nothing that torchfab did"
    if node.kernel_unread:
        words += f"; it may have been the OOM killer: the kernel's log cannot be read ({node.kernel_unread})"
        return Cause(Kind.KILLED, "killed", words, f"look there: sudo dmesg -T | grep -i kill (on {node.host})")
    return Cause(Kind.KILLED, "killed", f"{words}, nor the kernel's OOM killer", signal_sender.ASK)


def _unknown_sender(code: int) -> Cause:
    words = f"{describe_exit_code(code)} ended it; who sent it is not known"
    return Cause(Kind.KILLED, "ended", words, signal_sender.ASK)

"""Find the sender of the signal that ended a process: its launcher, its supervisor, or an external one. Pure.

torchrun and deepspeed's launcher log which processes they end, and which signal they received themselves (torch 2.13:
torch/distributed/elastic/agent/server/api.py and multiprocessing/api.py; deepspeed 0.19: launcher/launch.py). A
supervisor records the child processes that were left when its own process ended.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from torchfab.core.status import ProcessStatus, describe_exit_code
from torchfab.why import signatures, tracebacks
from torchfab.why.causes import Cause, Kind
from torchfab.why.evidence import NodeEvidence

ASK = "find out who sent it: an administrator, a script"
# Exit code -> signal, negative: of a process that a signal ended, and of a script that handles the signal and exits.
_SIGNAL_CODES = {-15: -15, -2: -2, -1: -1, 143: -15, 130: -2, 129: -1}
# The exit code of a shell, or of a script that handles the signal, for signals that request an end.
SHELL_SIGNALS = tuple(code for code in _SIGNAL_CODES if code > 0)
_RECEIVED_SIGNAL = (
    (re.compile(r"Received (?:Signals\.)?(SIG\w+|\d{1,3}) death signal, shutting down workers"), "torchrun"),
    (re.compile(r"Main process received (SIG\w+), exiting"), "deepspeed's launcher"),
)
_LAUNCHER_ENDS_RANK = (
    (r"Sending process {pid} closing signal SIG", "torchrun"),
    (r"Unable to shutdown process {pid} via", "torchrun"),
    (r"Killing subprocess {pid}\b", "deepspeed's launcher"),
)
_RANK_FAILED = r"failed \(exitcode: {code}\) local_rank: \d+ \(pid: {pid}\)"


def is_signal_exit(code: int | None, rank: int | None, node: NodeEvidence) -> bool:
    """Return whether an exit code may be the result of a signal.

    Parameters
    ----------
    code : int, optional
        Exit code, negative for a signal.
    rank : int, optional
        None for a launcher process: if it logged a signal, it may exit with any code.
    node : NodeEvidence
        The node that the process ran on.

    Returns
    -------
    bool
        True if a signal is possible; it is not proven.
    """
    return code in _SIGNAL_CODES or (
        rank is None and bool(code) and _received_signal(_launcher_output(node)) is not None
    )


def sender_of(node: NodeEvidence, process: ProcessStatus, code: int, pid: int | None) -> Cause | None:
    """Return the part of the job that ended a process: its launcher or its supervisor.

    Parameters
    ----------
    node : NodeEvidence
        The node that the process ran on.
    process : ProcessStatus
        The process itself, or the launcher process that started the rank, as the node reports it.
    code : int
        Exit code, negative for a signal.
    pid : int, optional
        Of the process that ended.

    Returns
    -------
    Cause or None
        None if no log or record names the sender.
    """
    end = node.exit_records.get(process.name, {})
    output = _launcher_output(node)
    if received := _received_signal(output):
        sender = "not sent by fab stop or its supervisor" if end else "its sender is unknown"
        event = f"{received[0]} received {received[1]}" + ("" if pid == process.pid else ", and its ranks with it")
        return Cause(Kind.KILLED, "terminated", f"{event}; {sender}", ASK)
    if why := next((why for each, why in end.get("peers", ()) if each == pid), ""):
        return _supervisor_cause(why, output, code)
    if launcher := _launcher_that_ended(output, pid):
        return _launcher_cause(launcher, output, code)
    if _is_named(pid, (*end.get("left", ()), *end.get("killed", ()))):
        how = f"its supervisor ended it ({describe_exit_code(code)}): it was left when {process.name} had ended"
        return Cause(Kind.UNKNOWN, "by-supervisor", how, "see its last lines")
    return None


def external_sender(node: NodeEvidence, process: ProcessStatus, code: int, pid: int | None) -> Cause | None:
    """Return a cause if the signal certainly came from outside the job.

    Parameters
    ----------
    node : NodeEvidence
        The node that the process ran on.
    process : ProcessStatus
        The process itself, or the launcher process that started the rank, as the node reports it.
    code : int
        Exit code, negative for a signal.
    pid : int, optional
        Of the process that ended.

    Returns
    -------
    Cause or None
        None if the launcher may have sent the signal.
    """
    is_supervised = bool(node.exit_records.get(process.name)) and pid == process.pid
    reported_by_launcher = pid and re.search(_RANK_FAILED.format(code=code, pid=pid), _launcher_output(node))
    if not is_supervised and not reported_by_launcher:
        return None
    excluded = "torchfab did not send it" if is_supervised else "neither torchfab nor its launcher sent it"
    name = describe_exit_code(code)
    if code > 0:
        name = f"it ended with {name}, typical of a script that handles {describe_exit_code(_SIGNAL_CODES[code])}; that"
    return Cause(Kind.KILLED, "terminated", f"{name} came from outside: {excluded}", ASK)


def _launcher_output(node: NodeEvidence) -> str:
    return "\n".join(log.text for log in node.logs if log.label == "agent")


def _received_signal(output: str) -> tuple[str, str] | None:
    """Return the launcher that logged a signal, and the name of the signal."""
    for pattern, launcher in _RECEIVED_SIGNAL:
        if match := pattern.search(output):
            return launcher, describe_exit_code(-int(match[1])) if match[1].isdigit() else match[1]
    return None


def _launcher_that_ended(output: str, pid: int | None) -> str:
    found = (name for pattern, name in _LAUNCHER_ENDS_RANK if pid and re.search(pattern.format(pid=pid), output))
    return next(found, "")


def _launcher_cause(launcher: str, output: str, code: int) -> Cause:
    """Return why a launcher ended a rank: another rank of its node, or the launcher itself, had failed."""
    how = f"{launcher} ended it ({describe_exit_code(code)})"
    if re.search(_RANK_FAILED.format(code=r"-?\d+", pid=r"\d+"), output):
        return Cause(Kind.UNKNOWN, "by-launcher", f"{how} after another rank of its node had failed")
    traceback = tracebacks.last_traceback(output)
    cause = signatures.recognise(traceback.exception) if traceback else None
    if cause is not None:
        return replace(cause, words=f"{how}: {cause.words}")
    return Cause(Kind.UNKNOWN, "by-launcher", how, "see the launcher's own log: fab logs")


def _supervisor_cause(why: str, output: str, code: int) -> Cause:
    """Return why a supervisor ended a rank, in place of the launcher."""
    how = f"its supervisor ended it ({describe_exit_code(code)})"
    if why == "failed":
        return Cause(Kind.UNKNOWN, "by-supervisor", f"{how} after another rank of its node had failed")
    if why != "closing":
        return Cause(Kind.UNKNOWN, "by-supervisor", f"{how} because its launcher got {why}")
    traceback = tracebacks.last_traceback(output)
    cause = signatures.recognise(traceback.exception) if traceback else None
    if cause is not None:
        return replace(cause, words=f"{how}: {cause.words}")
    return Cause(
        Kind.UNKNOWN, "by-supervisor", f"{how} because its launcher was about to", "see the launcher's own log"
    )


def _is_named(pid: int | None, described: Sequence[str]) -> bool:
    """Return whether a pid is among processes that a supervisor listed (`123 (python train.py)`)."""
    return any(each.startswith(f"{pid} ") for each in described)

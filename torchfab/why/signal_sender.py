"""Who ended a process by a signal: its launcher, its supervisor, or somebody outside. Pure.

torchrun and deepspeed's launcher write down whom they end, and what asked themselves to end (torch 2.13:
torch/distributed/elastic/agent/server/api.py and multiprocessing/api.py; deepspeed 0.19: launcher/launch.py). A
supervisor writes down what was left below it when the process that it answers for had ended.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torchfab.core.status import code_words
from torchfab.why import signatures, tracebacks
from torchfab.why.causes import Cause, Kind
from torchfab.why.evidence import NodeEvidence

ASK = "ask who did it: an administrator, a script"
# What ends a process by a signal, or by the exit code with which a script ends itself that minds the signal.
_ENDINGS = {-15: -15, -2: -2, -1: -1, 143: -15, 130: -2, 129: -1}
_RECEIVED_SIGNAL = (
    (re.compile(r"Received (?:Signals\.)?(SIG\w+|\d{1,3}) death signal, shutting down workers"), "torchrun"),
    (re.compile(r"Main process received (SIG\w+), exiting"), "deepspeed's launcher"),
)
_ENDS_RANKS = (
    (r"Sending process {pid} closing signal SIG", "torchrun"),
    (r"Unable to shutdown process {pid} via", "torchrun"),
    (r"Killing subprocess {pid}\b", "deepspeed's launcher"),
)
_FAILED = r"failed \(exitcode: {code}\) local_rank: \d+ \(pid: {pid}\)"


def is_signal_exit(code: int | None, rank: int | None, node: NodeEvidence) -> bool:
    """Say whether an exit code is that of something that a signal asked to end.

    Parameters
    ----------
    code : int, optional
        Negative for a signal.
    rank : int, optional
        None for a launcher's process: one that says that it was asked to end may end with any code.
    """
    return code in _ENDINGS or (rank is None and bool(code) and _asked(_launcher_output(node)) is not None)


def sender_of(node: NodeEvidence, process: Mapping[str, Any], code: int, pid: int | None) -> Cause | None:
    """Return which of those that belong to the job ended a process; None where nothing tells.

    Parameters
    ----------
    process : Mapping
        The process that it is, or that it ran below, as the node tells of it.
    """
    end = node.ends.get(process["name"], {})
    words = _launcher_output(node)
    if asked := _asked(words):
        who = "neither fab stop nor its supervisor did that" if end else "who did that is not known"
        what = f"{asked[0]} was asked to end ({asked[1]})" + (
            "" if pid == process["pid"] else ", and its ranks with it"
        )
        return Cause(Kind.KILLED, "terminated", f"{what}; {who}", ASK)
    if launcher := _launcher(words, pid):
        return _by_launcher(launcher, words, code)
    if _is_named(pid, (*end.get("left", ()), *end.get("killed", ()))):
        how = f"its supervisor ended it ({code_words(code)}): it was left when {process['name']} had ended"
        return Cause(Kind.UNKNOWN, "by-supervisor", how, "see its last lines")
    return None


def external_sender(node: NodeEvidence, process: Mapping[str, Any], code: int, pid: int | None) -> Cause | None:
    """Return that nobody of the job sent the signal, where that is certain."""
    alone = bool(node.ends.get(process["name"])) and pid == process["pid"]
    itself = pid and re.search(_FAILED.format(code=code, pid=pid), _launcher_output(node))
    if not alone and not itself:
        return None
    nobody = "nothing that torchfab did" if alone else "nothing that torchfab did, nor its launcher"
    name = code_words(code)
    if code > 0:
        name = f"it ended with {name}, as a script does that minds {code_words(_ENDINGS[code])}; that"
    return Cause(Kind.KILLED, "terminated", f"{name} came from outside: {nobody}", ASK)


def _launcher_output(node: NodeEvidence) -> str:
    return "\n".join(log.text for log in node.logs if log.label == "agent")


def _asked(words: str) -> tuple[str, str] | None:
    """Return which launcher says that a signal asked it to end, and which one."""
    for pattern, launcher in _RECEIVED_SIGNAL:
        if match := pattern.search(words):
            return launcher, code_words(-int(match[1])) if match[1].isdigit() else match[1]
    return None


def _launcher(words: str, pid: int | None) -> str:
    found = (name for sign, name in _ENDS_RANKS if pid and re.search(sign.format(pid=pid), words))
    return next(found, "")


def _by_launcher(launcher: str, words: str, code: int) -> Cause:
    """Return why a launcher ended a rank: another one of its node had failed, or itself had."""
    how = f"{launcher} ended it ({code_words(code)})"
    if re.search(_FAILED.format(code=r"-?\d+", pid=r"\d+"), words):
        return Cause(Kind.UNKNOWN, "by-launcher", f"{how} after another rank of its node had failed")
    traceback = tracebacks.last_traceback(words)
    cause = signatures.recognise(traceback.exception) if traceback else None
    if cause is not None:
        return replace(cause, words=f"{how}: {cause.words}")
    return Cause(Kind.UNKNOWN, "by-launcher", how, "see the launcher's own log: fab logs")


def _is_named(pid: int | None, described: Sequence[str]) -> bool:
    """Say whether a process is among some that a supervisor described (`123 (python train.py)`)."""
    return any(each.startswith(f"{pid} ") for each in described)

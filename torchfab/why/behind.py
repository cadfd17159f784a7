"""Who kept the others waiting: the rank behind in a collective, the node that never came to the rendezvous."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torchfab.inventory import fold, fold_ranks
from torchfab.status import duration
from torchfab.why.ends import End
from torchfab.why.evidence import Evidence, Log, NodeEvidence

# ProcessGroupNCCL.cpp: what the watchdog of each rank says when it gives up.
_NCCL_STATE = re.compile(r"last enqueued NCCL work: (?P<enqueued>-?\d+)")
_TIMEOUTS = ("nccl-timeout", "gloo-timeout", "store-timeout")
_SILENCE_S = 2.0


def notes(first: End, ends: Sequence[End], evidence: Evidence) -> tuple[str, ...]:
    """Return what is known of who was behind, where the first failure is that somebody waited in vain."""
    if first.cause.name in _TIMEOUTS:
        return (*_halted(evidence), *_sequence(evidence), *_silence(first, ends, evidence))
    if first.cause.name.startswith("rendezvous-"):
        return tuple(_never_came(ends, evidence))
    return ()


def _halted(evidence: Evidence) -> Iterator[str]:
    for node in evidence.nodes:
        for rank in node.halted:
            yield f"rank {rank} on {node.host} is stopped by a signal (SIGSTOP), or by a debugger"


def _sequence(evidence: Evidence) -> Iterator[str]:
    """Yield which ranks have begun the fewest collectives, by what NCCL's watchdogs say."""
    done: dict[int, tuple[int, str]] = {}
    for node in evidence.nodes:
        for log in node.logs:
            found = list(_NCCL_STATE.finditer(log.text))
            if found and isinstance(log.label, int):
                done[log.label] = (int(found[-1]["enqueued"]), node.host)
    enqueued = {each[0] for each in done.values()}
    if len(enqueued) > 1:
        least = min(enqueued)
        ranks = [rank for rank, each in done.items() if each[0] == least]
        hosts = fold(list(dict.fromkeys(done[rank][1] for rank in sorted(ranks))))
        words = f"{_ranks(ranks)} on {hosts} had begun {least} collectives"
        yield f"{words}, the others up to {max(enqueued)}: {'it was' if len(ranks) == 1 else 'they were'} behind"


def _silence(first: End, ends: Sequence[End], evidence: Evidence) -> Iterator[str]:
    """Yield which ranks did not complain of the timeout, and which had stopped logging before the others."""
    waited = {end.rank for end in ends if end.cause.name in _TIMEOUTS}
    quiet = [
        (rank["rank"], node)
        for node in evidence.nodes
        for rank in node.status.ranks
        if rank["rank"] is not None and rank["rank"] not in waited
    ]
    if waited and quiet:
        hosts = fold(list(dict.fromkeys(node.host for _, node in quiet)))
        yield f"{_ranks([rank for rank, _ in quiet])} on {hosts} did not say so: the others may have waited for that"
    last = {log.label: (log.written, node.host) for node in evidence.nodes for log in _of_ranks(node)}
    before = {rank: first.time - when for rank, (when, _) in last.items() if rank not in waited}
    for rank, seconds in before.items():
        if seconds > _SILENCE_S:
            yield f"rank {rank} on {last[rank][1]} had logged its last line {duration(seconds)} before that"


def _of_ranks(node: NodeEvidence) -> list[Log]:
    newest: dict[Any, Log] = {}
    for log in sorted(node.logs, key=lambda log: log.written):
        if isinstance(log.label, int):
            newest[log.label] = log
    return list(newest.values())


def _never_came(ends: Sequence[End], evidence: Evidence) -> Iterator[str]:
    came = {end.host for end in ends if end.cause.name == "rendezvous-timeout"}
    for node in evidence.nodes:
        if node.host in came or node.status.ranks:
            continue
        yield f"{node.host} never came: {_state_of(node, ends)}"


def _state_of(node: NodeEvidence, ends: Sequence[End]) -> str:
    own = next((end for end in ends if end.host == node.host), None)
    if own:
        return own.cause.words
    reason = node.status.reason
    if node.status.state == "unreachable":
        return f"it cannot be asked ({reason})"
    last: Mapping[str, Any] = node.status.last_line or {}
    said = f", its last line: {last['text'][:200]}" if last.get("text") else ", it said nothing"
    return f"there it is {node.status.state}{f' ({reason})' if reason else ''}{said}"


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {fold_ranks(sorted(ranks))}"

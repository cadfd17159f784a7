"""Who kept the others waiting: the rank behind in a collective, the node that never came to the rendezvous."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchfab.core.inventory import fold, fold_ranks
from torchfab.core.status import duration
from torchfab.why import signatures
from torchfab.why.evidence import Evidence, NodeEvidence
from torchfab.why.failures import Failure

# ProcessGroupNCCL.cpp: what the watchdog of each rank says when it gives up, of which process group (each has its own
# count; torch before 2.3 names none), from 2.4 on with what it had begun.
_GROUP = re.compile(r"\[PG (?:ID \S+ PG GUID )?([^\s(\]]+)")
_BEGUN = re.compile(r"last enqueued (?:NCCL )?work: (-?[0-9]{1,18})\b")
_WAITED = re.compile(r"operation timeout: WorkNCCL\(SeqNum=([0-9]{1,18})\b")
_TIMEOUTS = ("nccl-timeout", "nccl-stuck", "gloo-timeout", "store-timeout")
_SILENCE_S = 2.0


@dataclass(frozen=True)
class Straggler:
    """Somebody who kept the others waiting, or may have.

    Parameters
    ----------
    hosts : tuple of str
        Where.
    words : str
        What is known of it.
    """

    hosts: tuple[str, ...]
    words: str


def find_stragglers(first: Failure, failures: Sequence[Failure], evidence: Evidence) -> tuple[Straggler, ...]:
    """Return what is known of who was behind, where the first failure is that somebody waited in vain."""
    if first.cause.name in _TIMEOUTS:
        return (*halted(evidence), *_sequence(evidence), *_silence(first, failures, evidence))
    if first.cause.name.startswith("rendezvous-"):
        return tuple(_never_came(failures, evidence))
    return ()


def halted(evidence: Evidence) -> Iterator[Straggler]:
    """Yield what runs, and was stopped by a signal."""
    for node in evidence.nodes:
        for name in node.halted:
            yield Straggler((node.host,), f"{name} on {node.host} is stopped by a signal (SIGSTOP), or by a debugger")


def _sequence(evidence: Evidence) -> Iterator[Straggler]:
    """Yield which ranks have begun the fewest collectives of a process group, by what NCCL's watchdogs say."""
    told = _counts(evidence, _BEGUN) or _counts(evidence, _WAITED)
    for group, of_rank in told.items():
        counts = [count for count, _ in of_rank.values()]
        if len(set(counts)) > 1:
            ranks = sorted(rank for rank, (count, _) in of_rank.items() if count == min(counts))
            hosts = tuple(dict.fromkeys(of_rank[rank][1] for rank in ranks))
            what = f"{min(counts)} collectives" + (f" of process group {group}" if len(told) > 1 else "")
            yield Straggler(hosts, f"{_ranks(ranks)} on {fold(hosts)} had begun {what}, the others up to {max(counts)}")


def _counts(evidence: Evidence, pattern: re.Pattern[str]) -> dict[str, dict[int, tuple[int, str]]]:
    """Return what the ranks say last of each group that they name: rank to count and host.

    A count without a group is one only where no line names any.
    """
    found: dict[str, dict[int, tuple[int, str]]] = {}
    for node in evidence.nodes:
        for log in node.logs:
            for line in log.text.splitlines() if isinstance(log.label, int) else ():
                if match := pattern.search(line):
                    group = _GROUP.search(line)
                    of_rank = found.setdefault(group[1] if group else "", {})
                    of_rank[int(log.label)] = (int(match[1]), node.host)
    named = {group: of_rank for group, of_rank in found.items() if group}
    return named or found


def _silence(first: Failure, failures: Sequence[Failure], evidence: Evidence) -> Iterator[Straggler]:
    """Yield which ranks did not complain of the timeout, and how long before it they had logged their last line."""
    waited = {failure.rank for failure in failures if failure.cause.name in _TIMEOUTS}
    quiet = {
        rank["rank"]: node
        for node in evidence.nodes
        for rank in node.status.ranks
        if rank["rank"] is not None and rank["rank"] not in waited
    }
    if quiet:
        hosts = tuple(dict.fromkeys(node.host for node in quiet.values()))
        words = f"{_ranks(sorted(quiet))} on {fold(hosts)} did not time out: the others may have waited for that"
        yield Straggler(hosts, words)
    for rank, node in quiet.items():
        written = max((log.written for log in node.logs if log.label == rank), default=first.time)
        if first.time - written > _SILENCE_S:
            words = f"rank {rank} on {node.host} had logged its last line {duration(first.time - written)} before that"
            yield Straggler((node.host,), words)


def _never_came(failures: Sequence[Failure], evidence: Evidence) -> Iterator[Straggler]:
    came = {failure.host for failure in failures if failure.cause.name == "rendezvous-timeout"}
    for node in evidence.nodes:
        if node.host not in came and not node.status.ranks:
            yield Straggler((node.host,), f"{node.host} never came: {_state_of(node, failures)}")


def _state_of(node: NodeEvidence, failures: Sequence[Failure]) -> str:
    own = next((failure for failure in failures if failure.host == node.host), None)
    if own:
        return own.cause.words
    if node.status.state == "unreachable":
        return f"it cannot be asked ({node.status.reason})"
    if node.halted:
        return f"its {node.halted[0]} is stopped by a signal (SIGSTOP), or by a debugger"
    found = (signatures.recognise(log.text) for log in sorted(node.logs, key=lambda log: -log.written))
    said = next((cause.words for cause in found if cause), "")
    last: Mapping[str, Any] = node.status.last_line or {}
    return f"it is {node.status.state}, {said or (last.get('text') or 'and has said nothing')[:200]}"


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {fold_ranks(ranks)}"

"""Find stragglers: ranks that are behind in a collective, nodes that did not join the rendezvous."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torchfab.core.format import duration
from torchfab.core.inventory import fold, fold_ranks
from torchfab.core.lazy_dataclass import dataclass
from torchfab.why import signatures
from torchfab.why.evidence import Evidence, NodeEvidence
from torchfab.why.failures import Failure

# ProcessGroupNCCL.cpp: what the watchdog of each rank logs at a timeout. Each process group has its own count (torch
# before 2.3 does not name the group); torch 2.4 and later log the last enqueued work.
_GROUP = re.compile(r"\[PG (?:ID \S+ PG GUID )?([^\s(\]]+)")
_BEGUN = re.compile(r"last enqueued (?:NCCL )?work: (-?[0-9]{1,18})\b")
_WAITED = re.compile(r"operation timeout: WorkNCCL\(SeqNum=([0-9]{1,18})\b")
TIMEOUTS = ("nccl-timeout", "nccl-stuck", "gloo-timeout", "store-timeout")
_QUIET_S = 2.0


@dataclass(frozen=True)
class Straggler:
    """A rank or node that the others waited for, or may have waited for.

    Parameters
    ----------
    hosts : tuple of str
        Its host, or hosts.
    words : str
        Human-readable description.
    """

    hosts: tuple[str, ...]
    words: str


def find_stragglers(first: Failure, failures: Sequence[Failure], evidence: Evidence) -> tuple[Straggler, ...]:
    """Return the stragglers, if the first failure is a timeout.

    Parameters
    ----------
    first : Failure
        The first failure.
    failures : sequence of Failure
        All failures.
    evidence : Evidence
        Of the job.

    Returns
    -------
    tuple of Straggler
        Empty if the first failure is not a timeout of a collective or the rendezvous.
    """
    if first.cause.name in TIMEOUTS:
        return (*find_halted(evidence), *_behind_in_collectives(evidence), *_without_timeout(first, failures, evidence))
    if first.cause.name.startswith("rendezvous-"):
        return tuple(_not_in_rendezvous(failures, evidence))
    return ()


def find_halted(evidence: Evidence) -> Iterator[Straggler]:
    """Find processes that exist but are stopped by a signal (SIGSTOP).

    Parameters
    ----------
    evidence : Evidence
        Of the job.

    Yields
    ------
    Straggler
        One for each process.
    """
    for node in evidence.nodes:
        for name in node.halted:
            yield Straggler((node.host,), f"{name} on {node.host} is stopped by a signal (SIGSTOP) or a debugger")


def _behind_in_collectives(evidence: Evidence) -> Iterator[Straggler]:
    """Yield the ranks that have begun the fewest collectives of a process group, according to NCCL's watchdogs."""
    groups = _counts(evidence, _BEGUN) or _counts(evidence, _WAITED)
    for group, by_rank in groups.items():
        counts = [count for count, _ in by_rank.values()]
        if len(set(counts)) > 1:
            ranks = sorted(rank for rank, (count, _) in by_rank.items() if count == min(counts))
            hosts = tuple(dict.fromkeys(by_rank[rank][1] for rank in ranks))
            begun = f"{min(counts)} collectives" + (f" of process group {group}" if len(groups) > 1 else "")
            yield Straggler(
                hosts, f"{_ranks(ranks)} on {fold(hosts)} had begun {begun}, the others up to {max(counts)}"
            )


def _counts(evidence: Evidence, pattern: re.Pattern[str]) -> dict[str, dict[int, tuple[int, str]]]:
    """Return the last count that each rank logged: process group -> rank -> (count, host).

    Counts without a group are used only if no line names a group.
    """
    found: dict[str, dict[int, tuple[int, str]]] = {}
    for node in evidence.nodes:
        for log in node.logs:
            for line in log.text.splitlines() if isinstance(log.label, int) else ():
                if match := pattern.search(line):
                    group = _GROUP.search(line)
                    by_rank = found.setdefault(group[1] if group else "", {})
                    by_rank[int(log.label)] = (int(match[1]), node.host)
    named = {group: by_rank for group, by_rank in found.items() if group}
    return named or found


def _without_timeout(first: Failure, failures: Sequence[Failure], evidence: Evidence) -> Iterator[Straggler]:
    """Yield the ranks that did not report the timeout, with the age of their last log line."""
    timed_out = {failure.rank for failure in failures if failure.cause.name in TIMEOUTS}
    quiet = {
        rank.rank: node
        for node in evidence.nodes
        for rank in node.status.ranks
        if rank.rank is not None and rank.rank not in timed_out
    }
    if quiet:
        hosts = tuple(dict.fromkeys(node.host for node in quiet.values()))
        words = f"{_ranks(sorted(quiet))} on {fold(hosts)} did not time out: the others may have waited for it"
        yield Straggler(hosts, words)
    for rank, node in quiet.items():
        written = max((log.written for log in node.logs if log.label == rank), default=first.time)
        if first.time - written > _QUIET_S:
            words = f"rank {rank} on {node.host} had logged its last line {duration(first.time - written)} before that"
            yield Straggler((node.host,), words)


def _not_in_rendezvous(failures: Sequence[Failure], evidence: Evidence) -> Iterator[Straggler]:
    joined = {failure.host for failure in failures if failure.cause.name == "rendezvous-timeout"}
    for node in evidence.nodes:
        if node.host not in joined and not node.status.ranks:
            yield Straggler((node.host,), f"{node.host} did not join: {_describe_state(node, failures)}")


def _describe_state(node: NodeEvidence, failures: Sequence[Failure]) -> str:
    own = next((failure for failure in failures if failure.host == node.host), None)
    if own:
        return own.cause.words
    if node.status.state == "unreachable":
        return f"it is unreachable ({node.status.reason})"
    if node.halted:
        return f"its {node.halted[0]} is stopped by a signal (SIGSTOP) or a debugger"
    found = (signatures.recognise(log.text) for log in sorted(node.logs, key=lambda log: -log.written))
    logged_cause = next((cause.words for cause in found if cause), "")
    last = node.status.last_line.text if node.status.last_line else ""
    return f"it is {node.status.state}, {logged_cause or (last or 'and has logged nothing')[:200]}"


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {fold_ranks(ranks)}"

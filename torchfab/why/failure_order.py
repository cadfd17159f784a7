"""Order the failures of a job, and find rivals of the first one. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torchfab.core.format import duration
from torchfab.why.attribution import POSSIBLE, PROBABLE, last_lines, logs_of
from torchfab.why.causes import Cause, Kind
from torchfab.why.evidence import Evidence
from torchfab.why.failures import CONSEQUENCE, LOST, ROOT, SHOT, SYMPTOM, VAGUE, Failure
from torchfab.why.log_reading import EvidenceLine

_LEFT_EARLY_FIX = (
    "the same number of steps on every rank (drop_last, a padded sampler, torch.distributed.algorithms.Join), "
    "and a barrier before the end"
)
_PEER_LOST = ("exception", "worker-lost")
_NAMED_RANK = re.compile(r"\(RANK (\d+)\)")  # torch.distributed.checkpoint
# The order of two causes within this time cannot be determined from clocks and times of log lines.
_TIE_S = 1.5


def first_failure(failures: Sequence[Failure], slack_s: float = 5.0) -> Failure | None:
    """Return the failure that caused the others.

    This is the earliest ROOT failure. Symptoms on other ranks may carry a time up to `slack_s` seconds earlier, because
    clocks differ and a process takes time to exit. An older symptom has another cause.

    Parameters
    ----------
    failures : sequence of Failure
        All failures of the job.
    slack_s : float
        In seconds. Default 5.

    Returns
    -------
    Failure or None
        None if nothing failed.
    """
    found = _likeliest(failures, slack_s)
    return found and _named_by(found, failures)


def _named_by(first: Failure, failures: Sequence[Failure]) -> Failure:
    """Return the failure of the rank that an exception names, if all ranks report one rank's exception."""
    named = _NAMED_RANK.search(first.traceback.text) if first.traceback else None
    if named is None:
        return first
    assert first.traceback is not None
    raised = first.traceback.last_line
    same = [each for each in failures if each.traceback and each.traceback.last_line == raised]
    return next((each for each in same if str(each.rank) == named[1]), first)


def _likeliest(failures: Sequence[Failure], slack_s: float) -> Failure | None:
    if not failures:
        return None
    likeliest = min(failures, key=lambda failure: (failure.weight, failure.time))
    earlier = [
        failure for failure in failures if failure.weight < CONSEQUENCE and failure.time < likeliest.time - slack_s
    ]
    return _likeliest(earlier, slack_s) if earlier and likeliest.weight != LOST else likeliest


def rivals(first: Failure, failures: Sequence[Failure]) -> tuple[Failure, ...]:
    """Return other failures that may have come first.

    Parameters
    ----------
    first : Failure
        The first failure.
    failures : sequence of Failure
        All failures.

    Returns
    -------
    tuple of Failure
        At most one: of another cause, on another rank, within the accuracy of the times.
    """
    if first.weight not in (ROOT, SHOT):
        return ()
    near = [
        each
        for each in failures
        if each is not first and each.weight == first.weight and abs(each.time - first.time) <= _TIE_S
    ]
    return tuple(each for each in near if _identity(each) != _identity(first))[:1]


def _identity(failure: Failure) -> tuple[str, str]:
    fingerprint = failure.traceback.fingerprint if failure.traceback else str(failure.code)
    return failure.cause.name, fingerprint


def certainty_of(first: Failure, others: Sequence[Failure], failures: Sequence[Failure] = ()) -> str:
    """Return the certainty that a failure is the cause of the job's end.

    Parameters
    ----------
    first : Failure
        The first failure.
    others : sequence of Failure
        Its rivals.
    failures : sequence of Failure
        All failures; those that only report a lost rank confirm this one. Default none.

    Returns
    -------
    str
        `certain`, `probable` or `possible`.
    """
    is_lost_by_others = any(each.weight == SYMPTOM and each.rank is not None for each in failures)
    if first.certainty == POSSIBLE or (first.weight == VAGUE and not is_lost_by_others):
        return POSSIBLE
    if first.cause.name == "launcher":
        return POSSIBLE
    if others or first.weight != ROOT or first.is_running or first.code == 0:
        return PROBABLE
    return first.certainty


def left_early(failures: Sequence[Failure], evidence: Evidence, slack_s: float = 1.0) -> Failure | None:
    """Return the rank that ended with exit code 0 while others continued, if they failed because they lost it.

    Parameters
    ----------
    failures : sequence of Failure
        All failures of the job.
    evidence : Evidence
        Of the job.
    slack_s : float
        How much later than the first symptom its end may be recorded, in seconds. Default 1.

    Returns
    -------
    Failure or None
        None if something else explains the symptoms.
    """
    symptoms = [each for each in failures if each.weight in (VAGUE, SYMPTOM) and each.rank is not None]
    if any(each.weight in (ROOT, LOST, SHOT) for each in failures) or not symptoms:
        return None
    lost = min(symptoms, key=lambda each: each.time)
    if lost.cause.kind is not Kind.NETWORK and lost.cause.name not in _PEER_LOST:
        return None
    early = [
        (rank.ended - node.status.skew_s, node, rank)
        for node in evidence.nodes
        for rank in node.status.ranks
        if rank.code == 0 and rank.ended and rank.rank not in {each.rank for each in failures}
    ]
    early = [each for each in early if each[0] <= lost.time + slack_s]
    if not early:
        return None
    ended, node, rank = min(early, key=lambda each: each[0])
    before = f", {duration(lost.time - ended)} before" if lost.time - ended >= 1 else " before"
    lost_words = lost.cause.words.partition(":")[0]
    words = f"rank {rank.rank} had ended with exit code 0{before} rank {lost.rank} failed: {lost_words}"
    record = EvidenceLine(node.host, "exit record", 0, ended, f"rank {rank.rank} ended with exit code 0")
    log = next(iter(logs_of(node, rank.rank)), None)
    return Failure(
        time=ended,
        host=node.host,
        node_rank=node.status.node.rank,
        rank=rank.rank,
        code=0,
        cause=Cause(Kind.SCRIPT, "left-early", words, _LEFT_EARLY_FIX),
        weight=ROOT,
        lines=last_lines(log.text) if log else (),
        path=log.path if log else "",
        lived_s=ended + node.status.skew_s - (rank.started or ended + node.status.skew_s),
        certainty=PROBABLE,
        evidence=(record, *lost.evidence),
    )

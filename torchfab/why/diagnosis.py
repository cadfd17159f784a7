"""Diagnose a job from its evidence: the first failure, its cause and its consequences. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace

from torchfab.collectives.align import Kind as Kinds
from torchfab.collectives.align import Verdict, find_verdicts
from torchfab.collectives.model import RankHistory, Snapshot
from torchfab.core.format import format_bytes
from torchfab.core.inventory import fold, fold_ranks
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.status import JobStatus, NodeStatus, RankStatus, describe_exit_code
from torchfab.why import causes
from torchfab.why.attribution import POSSIBLE
from torchfab.why.causes import Cause, Kind
from torchfab.why.evidence import Evidence, SchedulerReason
from torchfab.why.failure_order import certainty_of, first_failure, left_early, rivals
from torchfab.why.failures import CONSEQUENCE, LOST, SYMPTOM, Failure, all_failures
from torchfab.why.log_reading import EvidenceLine
from torchfab.why.stragglers import TIMEOUTS, Straggler, find_halted, find_stragglers
from torchfab.why.tracebacks import Traceback, fingerprint_of

_NEARLY_FULL_BYTES = 64 * 1024 * 1024
_MAX_EVENTS = 40
# Packages that may be installed on some nodes only.
_OF_RANK_0 = re.compile(
    r"No module named '(?:wandb|tensorboard\w*|mlflow|comet_ml|neptune|clearml|swanlab|aim|trackio|visdom|dvclive"
    r"|matplotlib|seaborn|tqdm|rich|pandas|loguru)\b"
)
_INSTALLED = ("import-error", "script-missing", "tool-missing")
_MAX_KERNEL_LINES = 6
_MAX_BATCH_LINES = 3
_MAX_REASONS = 3


@dataclass(frozen=True)
class TimelineEvent:
    """One event of a job.

    Parameters
    ----------
    time : float
        In seconds since the epoch, on this machine's clock.
    where : str
        Hosts and ranks; empty for the job as a whole.
    what : str
        Human-readable description.
    """

    time: float
    where: str
    what: str


@dataclass(frozen=True)
class Diagnosis:
    """The result of `fab why`: why a job ended, or the state that it is in.

    Parameters
    ----------
    job, state : str
        Name of the job, and its state as `fab status` reports it.
    created : float
        When it was launched, in seconds since the epoch.
    cause : Cause
        Why it ended, or the state that it is in.
    first : Failure, optional
        The first failure; None when nothing failed.
    stragglers : tuple of Straggler
        The ranks or hosts that the others waited for, or may have waited for.
    notes : tuple of str
        More facts: free space of a disk, lines of the kernel log.
    consequences : tuple of str
        The failures that followed; equal ones are folded into one line.
    timeline : tuple of TimelineEvent
        All events, sorted by time.
    bad_nodes : tuple of str
        The hosts of a NODE cause.
    unreachable : Mapping of str to str
        The hosts that could not be queried, with the reason.
    certainty : str
        Certainty of the cause: `certain`, `probable`, `possible`; empty when nothing failed.
    evidence : tuple of EvidenceLine
        The log lines that support it.
    rivals : tuple of Failure
        Other failures that may have come first.
    others : tuple of str
        The ends of ranks that are in no failure; equal ends are one line.
    collectives : tuple of Verdict
        What held the collectives of the ranks up: while it runs, or before it ended.
    """

    job: str
    state: str
    created: float
    cause: Cause
    first: Failure | None = None
    stragglers: tuple[Straggler, ...] = ()
    notes: tuple[str, ...] = ()
    consequences: tuple[str, ...] = ()
    timeline: tuple[TimelineEvent, ...] = ()
    bad_nodes: tuple[str, ...] = ()
    unreachable: Mapping[str, str] = field(default_factory=dict)
    certainty: str = ""
    evidence: tuple[EvidenceLine, ...] = ()
    rivals: tuple[Failure, ...] = ()
    others: tuple[str, ...] = ()
    collectives: tuple[Verdict, ...] = ()

    @property
    def traceback(self) -> Traceback | None:
        """The traceback of the first failure."""
        return self.first.traceback if self.first else None

    @property
    def place(self) -> str:
        """Where in the script it failed: `FILE:LINE, in FUNCTION`; empty if that is not known."""
        return self.first.place if self.first else ""

    @property
    def fingerprint(self) -> str:
        """A hash that is the same for two equal failures; empty when nothing failed."""
        if self.first is None:
            return ""
        if self.traceback and self.cause.kind is Kind.SCRIPT:
            return self.traceback.fingerprint
        return fingerprint_of(self.cause.name, describe_exit_code(self.first.code or 0))


def diagnose(evidence: Evidence) -> Diagnosis:
    """Return why a job ended, or the state that it is in.

    Parameters
    ----------
    evidence : Evidence
        Of the job.

    Returns
    -------
    Diagnosis
        Without a first failure if the job succeeded, is running, was stopped, or has no known failure.
    """
    failures = all_failures(evidence)
    if (early := left_early(failures, evidence)) is not None:
        failures = sorted([early, *failures], key=lambda failure: failure.time)
    first, cause = _find_first(evidence, failures)
    state = evidence.status.state
    base = Diagnosis(evidence.job, state, evidence.created, cause, unreachable=evidence.unreachable)
    if cause.kind in (Kind.SUCCEEDED, Kind.RUNNING, Kind.STOPPED) or first is None:
        others = _consequences(failures, None, cause)
        return replace(
            base,
            notes=_job_notes(evidence),
            consequences=others,
            timeline=_timeline(evidence, failures, cause),
            collectives=() if cause.kind is Kind.SUCCEEDED else find_verdicts(evidence.collectives),
        )
    if cause.name in _INSTALLED:
        cause = _missing_on_a_node(cause, first, failures, evidence)
    if cause.name == "launcher" and all(failure.rank is None for failure in failures):
        cause = replace(cause, words=f"{cause.words}, and no earlier failure of a rank is known")
    competing = rivals(first, failures)
    return replace(
        base,
        cause=cause,
        first=first,
        certainty=_certainty(first, competing, failures, evidence),
        evidence=first.evidence,
        rivals=competing,
        others=_other_ranks(failures, evidence),
        stragglers=find_stragglers(first, failures, evidence),
        collectives=_collectives(first, evidence),
        notes=_failure_notes(first, evidence),
        consequences=_consequences(failures, first, cause),
        timeline=_timeline(evidence, failures, cause),
        bad_nodes=_bad_nodes(cause, first, failures, evidence.unreachable),
    )


def _certainty(first: Failure, competing: Sequence[Failure], failures: Sequence[Failure], evidence: Evidence) -> str:
    """Return the certainty of the first failure: the cause of a symptom may be on a rank without evidence."""
    known = {failure.rank for failure in failures}
    if first.weight == SYMPTOM and _unseen_ranks(known, evidence):
        return POSSIBLE
    return certainty_of(first, competing, failures)


def _collectives(first: Failure, evidence: Evidence) -> tuple[Verdict, ...]:
    """Return what held the collectives up. A rank that has failed is late for the others because of that."""
    ranks = dict(evidence.collectives.ranks)
    if first.rank is not None:  # one that was killed has kept nothing
        ranks.setdefault(first.rank, RankHistory(first.rank, first.host, has_ended=True))
    found = find_verdicts(Snapshot(ranks))
    is_timeout = first.cause.name in TIMEOUTS
    return tuple(verdict for verdict in found if is_timeout or verdict.kind not in (Kinds.MISSING, Kinds.BEHIND))


# ---- the cause


def _find_first(evidence: Evidence, failures: Sequence[Failure]) -> tuple[Failure | None, Cause]:
    """Return the first failure and the cause of the whole job."""
    job_reason = next((each for each in evidence.scheduler_reasons if not each.host), None)
    if job_reason is not None:
        cause = causes.cause_of_schedule(job_reason.reason, job_reason.words)
        return (None if cause.kind is Kind.STOPPED else _killed_by_scheduler(failures)), cause
    if evidence.status.state == "succeeded":
        return None, Cause(Kind.SUCCEEDED, "succeeded", "it has succeeded: exit code 0")
    if evidence.status.state == "stopped" or evidence.status.was_stopped:
        return None, _stop_cause(evidence)
    first = first_failure(failures)
    if first is not None:
        return first, _unreachable_cause(first, evidence) or _scheduler_cause(first, evidence.scheduler_reasons)
    return None, _cause_of_state(evidence.status)


def _cause_of_state(job: JobStatus) -> Cause:
    """Return the cause for a job without failures, by its state."""
    reason = f" ({job.reason})" if job.reason else ""
    if job.state in ("pending", "starting", "running"):
        return Cause(Kind.RUNNING, job.state, f"it is {job.state}{reason}, and nothing has failed")
    if job.state == "unreachable":
        return Cause(Kind.UNKNOWN, "unreachable", f"nodes are unreachable{reason}", "try again; fab doctor")
    return Cause(Kind.UNKNOWN, "unknown", f"it is {job.state}{reason}, and no reason was recorded")


def _killed_by_scheduler(failures: Sequence[Failure]) -> Failure | None:
    """Return the failure of what a scheduler killed: the first one by a signal, otherwise the first one."""
    return next((failure for failure in failures if (failure.code or 0) < 0), failures[0] if failures else None)


def _scheduler_cause(first: Failure, reasons: Sequence[SchedulerReason]) -> Cause:
    """Return the scheduler's reason for the node of the first failure; without one, the failure's own cause."""
    reason = next((each for each in reasons if each.host == first.host), None)
    return causes.cause_of_schedule(reason.reason, reason.words) if reason else first.cause


def _unreachable_cause(first: Failure, evidence: Evidence) -> Cause | None:
    """Blame the unreachable nodes if the first failure elsewhere is only a lost connection or a timeout."""
    unreachable = evidence.unreachable
    if not unreachable or not (first.cause.is_symptom or first.cause.name == "rendezvous-timeout"):
        return None
    hosts = fold(list(unreachable))
    words = f"{hosts} cannot be reached ({next(iter(unreachable.values()))}); on {first.label}, {first.cause.words}"
    return Cause(
        Kind.NODE,
        "node-unreachable",
        words,
        f"check whether {hosts} is up, and its network link; then run fab why again",
        True,
    )


def _stop_cause(evidence: Evidence) -> Cause:
    names = [event["event"] for event in evidence.events]
    words = "it was stopped with fab stop, not from here"
    if "stop" in names:
        words = "it was stopped with fab stop, from here"
    elif "stopped after a failure" in names:
        words = "it was stopped after a failure, by the fab that followed it"
    reason = evidence.status.reason
    return Cause(Kind.STOPPED, "stopped", reason or words)


def _missing_on_a_node(cause: Cause, first: Failure, failures: Sequence[Failure], evidence: Evidence) -> Cause:
    """Blame the nodes on which something is missing, if the ranks of other nodes ran longer: the installations differ.

    If only some ranks of a node fail, or only rank 0 lacks a tracker, the script itself acts differently there.
    """
    same = [failure for failure in failures if failure.cause.name == cause.name]
    hosts = list(dict.fromkeys(failure.host for failure in same))
    further = [node.host for node in evidence.nodes if node.host not in hosts and _outlived(node.status, first)]
    if not further:
        return cause
    words = f"{cause.words}, on {fold(hosts)} only: {fold(further)} got further"
    ranks = {failure.rank for failure in same}
    there = [rank for node in evidence.nodes if node.host == first.host for rank in node.status.ranks]
    of_rank_0 = ranks == {0} and _OF_RANK_0.search(cause.words)
    if of_rank_0 or any(rank.rank not in ranks and _lived(rank, first) for rank in there):
        return cause
    return replace(cause, kind=Kind.NODE, name=f"{cause.name}-of-node", words=words)


def _outlived(status: NodeStatus, first: Failure) -> bool:
    return any(_lived(rank, first, status.now) for rank in status.ranks)


def _lived(rank: RankStatus, first: Failure, now: float = float("inf")) -> bool:
    """Return whether a rank ran longer than the first one that failed."""
    return bool(rank.started) and (rank.ended or now) - (rank.started or 0.0) > first.lived_s + 1.0


def _bad_nodes(
    cause: Cause, first: Failure, failures: Sequence[Failure], unreachable: Iterable[str]
) -> tuple[str, ...]:
    if cause.kind is not Kind.NODE:
        return ()
    if cause.name == "node-unreachable":
        return tuple(unreachable)
    same = [failure.host for failure in failures if failure.cause.name == first.cause.name and failure.weight <= LOST]
    return tuple(dict.fromkeys([first.host, *same]))


# ---- notes, consequences, timeline


def _failure_notes(first: Failure, evidence: Evidence) -> tuple[str, ...]:
    node = next(each for each in evidence.nodes if each.host == first.host)
    full = [disk for disk in node.disks if disk.size and disk.free < _NEARLY_FULL_BYTES]
    disks = [f"{first.host}: {disk.path} has {disk.free / 1e6:.1f} of {disk.size / 1e6:.0f} MB free" for disk in full]
    kernel = [line.text for line in node.kernel if line.text not in first.cause.words][:_MAX_KERNEL_LINES]
    kernel_notes = [f"kernel log of {first.host}: {text}" for text in kernel]
    return (*disks, *kernel_notes, *_one_machine_notes(first, evidence), *_job_notes(evidence))


def _one_machine_notes(first: Failure, evidence: Evidence) -> tuple[str, ...]:
    """Return which nodes are one machine, if two ranks used one GPU."""
    if first.cause.name != "duplicate-gpu":
        return ()
    by_boot: dict[str, list[str]] = {}
    for node in evidence.nodes:
        if node.boot_id:
            by_boot.setdefault(node.boot_id, []).append(node.host)
    twice = [hosts for hosts in by_boot.values() if len(hosts) > 1]
    return tuple(f"{' and '.join(hosts)} are one machine (the same boot id): list it once" for hosts in twice)


def _job_notes(evidence: Evidence) -> tuple[str, ...]:
    """Return the notes on a job that do not depend on a failure."""
    batch = (
        [line for line in evidence.batch_output.splitlines() if line.strip()][-_MAX_BATCH_LINES:]
        if evidence.scheduler_reasons
        else []
    )
    restarts = max((rank.attempt for node in evidence.nodes for rank in node.status.ranks), default=0)
    times = "once" if restarts == 1 else f"{restarts} times"
    found = [f"output of the batch script: {line[:300]}" for line in batch]
    found += [
        f"{format_bytes(log.unsearched)} of {log.path} on {node.host}, after its first "
        f"{format_bytes(log.unsearched_from)}, were not searched: the time limit was reached"
        for node in evidence.nodes
        for log in node.logs
        if log.unsearched
    ]
    found += [f"torchrun had restarted its ranks {times} before"] if restarts else []
    for node in evidence.nodes:
        if node.status.left:
            found.append(f"{node.status.left[0]} is still running on {node.host}: fab stop {evidence.job}")
    if evidence.status.state in ("running", "starting"):
        found += [each.words for each in find_halted(evidence)]
    return tuple(found)


def _consequences(failures: Sequence[Failure], first: Failure | None, cause: Cause) -> tuple[str, ...]:
    """Return how the other ranks failed, equal failures as one line."""
    groups: dict[str, list[Failure]] = {}
    for failure in failures:
        if failure is not first:
            is_same = first is not None and failure.cause.words == first.cause.words and failure.weight < CONSEQUENCE
            groups.setdefault("the same" if is_same else _describe(failure, cause), []).append(failure)
    return tuple(f"{_ranks_and_hosts(group)}: {words}" for words, group in groups.items())


def _describe(failure: Failure, cause: Cause) -> str:
    if failure.cause.kind is Kind.STOPPED:
        return "ended by fab, which stopped the rest"
    words = failure.cause.words
    if failure.cause.name in ("by-launcher", "by-supervisor"):
        return words
    if failure.cause is not cause and (failure.weight == CONSEQUENCE or failure.cause.name == "asked"):
        how = describe_exit_code(failure.code or 0)
        return f"ended {'with' if (failure.code or 0) >= 0 else 'by'} {how} after it"
    if failure.cause.is_symptom and failure.cause.name != "exception":  # addresses and numbers differ
        words = words.partition(":")[0]
    elif failure.code == 0 and failure.cause.name != "left-early":
        words += ", and ended with exit code 0"
    return words + ("; its process is still running" if failure.is_running else "")


def _other_ranks(failures: Sequence[Failure], evidence: Evidence) -> tuple[str, ...]:
    """Return the ends of ranks that are in no failure, so that the report covers every rank."""
    known = {failure.rank for failure in failures}
    groups: dict[str, list[tuple[str, int]]] = {}
    for node in evidence.nodes:
        for rank in node.status.ranks:
            if rank.rank is None or rank.rank in known:
                continue
            words = "is still running, as far as is known"
            if rank.ended:
                words = "ended, with an unknown exit code" if rank.code is None else f"ended with exit code {rank.code}"
            groups.setdefault(words, []).append((node.host, rank.rank))
    lines = [
        f"{_name_ranks(list(dict.fromkeys(host for host, _ in group)), [rank for _, rank in group])}: {words}"
        for words, group in groups.items()
    ]
    return (*lines, *_unseen_ranks(known, evidence))


def _unseen_ranks(known: set[int | None], evidence: Evidence) -> list[str]:
    """Return the ranks that no node has reported, and the reasons."""
    seen = known | {rank.rank for node in evidence.nodes for rank in node.status.ranks}
    unseen = [rank for rank in range(evidence.world_size) if rank not in seen]
    if not unseen:
        return []
    silent = [node for node in evidence.nodes if not node.status.ranks and node.status.reason]
    ranks, many = _name_ranks((), unseen), len(unseen) > 1
    if silent and all(node.host in evidence.unreachable for node in silent):
        hosts = fold([node.host for node in silent])
        return [f"{ranks}: unknown, no answer from {hosts}"]
    reasons = [f"{node.host}: {node.status.reason}" for node in silent]
    seen_words = f"{'they were' if many else 'it was'} not seen to run"
    return [f"{ranks}: {'; '.join([seen_words, *reasons[:_MAX_REASONS]])}"]


def _name_ranks(hosts: Sequence[str], ranks: Sequence[int]) -> str:
    name = f"rank{'s' if len(set(ranks)) > 1 else ''} {fold_ranks(sorted(ranks))}"
    return f"{fold(list(hosts))} {name}" if hosts else name


def _ranks_and_hosts(group: Sequence[Failure]) -> str:
    hosts = list(dict.fromkeys(failure.host for failure in group))
    ranks = [failure.rank for failure in group if failure.rank is not None]
    return _name_ranks(hosts, ranks) if ranks else fold(hosts)


def _timeline(evidence: Evidence, failures: Sequence[Failure], cause: Cause) -> tuple[TimelineEvent, ...]:
    """Return all events sorted by time; equal failures of many ranks within the same second are one event."""
    groups: dict[tuple[str, int], list[Failure]] = {}
    for failure in failures:
        words = "last sign of life" if failure.weight == LOST else _describe(failure, cause)
        groups.setdefault((words, int(failure.time)), []).append(failure)
    found = [TimelineEvent(group[0].time, _ranks_and_hosts(group), words) for (words, _), group in groups.items()]
    found.append(TimelineEvent(evidence.created, "", "launched"))
    for node in evidence.nodes:
        found += [TimelineEvent(line.time, f"kernel of {node.host}", line.text) for line in node.kernel]
    for event in evidence.events:
        if event["event"] in ("stop", "stopped after a failure"):
            found.append(TimelineEvent(event["time"], "", f"fab: {event['event']}"))
    return tuple(sorted(found, key=lambda event: event.time)[:_MAX_EVENTS])

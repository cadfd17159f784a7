"""From evidence to a story: what happened first, why, and what followed from it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torchfab.core.inventory import fold, fold_ranks
from torchfab.core.status import JobStatus, NodeStatus, code_words
from torchfab.why import causes
from torchfab.why.causes import Cause, Kind
from torchfab.why.evidence import Evidence, Said
from torchfab.why.failures import CONSEQUENCE, LOST, Failure, all_failures, first_failure
from torchfab.why.stragglers import Straggler, find_stragglers, halted
from torchfab.why.tracebacks import Traceback, fingerprint_of

_NEARLY_FULL_BYTES = 64 * 1024 * 1024
_MOST_MOMENTS = 40
_MOST_KERNEL_LINES = 6
_MOST_BATCH_LINES = 3


@dataclass(frozen=True)
class TimelineEvent:
    """Something that happened: when (seconds since the epoch, this machine's clock), where, what."""

    time: float
    where: str
    what: str


@dataclass(frozen=True)
class Diagnosis:
    """Why a job ended as it did, or how it is.

    Parameters
    ----------
    job, state : str
        Its name, and its state as `fab status` has it.
    cause : Cause
        Why.
    first : End, optional
        What failed first; None when nothing failed.
    behind : tuple of Behind
        Where the others waited in vain: for whom, or for whom they may have.
    notes : tuple of str
        More facts: what a disk has left, what the kernel said.
    consequences : tuple of str
        What followed from it, equal ones folded.
    moments : tuple of Moment
        All of it in the order of time.
    bad_nodes : tuple of str
        The hosts that a NODE cause is about.
    silent : Mapping of str to str
        The hosts that could not be asked, and why.
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
    silent: Mapping[str, str] = field(default_factory=dict)

    @property
    def traceback(self) -> Traceback | None:
        """The traceback of what failed first."""
        return self.first.traceback if self.first else None

    @property
    def fingerprint(self) -> str:
        """Equal for two failures that are the same; empty when nothing failed."""
        if self.first is None:
            return ""
        if self.traceback and self.cause.kind is Kind.SCRIPT:
            return self.traceback.fingerprint
        return fingerprint_of(self.cause.name, code_words(self.first.code or 0))


def diagnose(evidence: Evidence) -> Diagnosis:
    """Return the story of a job."""
    failures = all_failures(evidence)
    first, cause = _first(evidence, failures)
    state = evidence.status.state
    base = Diagnosis(evidence.job, state, evidence.created, cause, silent=evidence.silent)
    if cause.kind in (Kind.SUCCEEDED, Kind.RUNNING, Kind.STOPPED) or first is None:
        others = _consequences(failures, None, cause)
        return replace(
            base, notes=_notes_of_state(evidence), consequences=others, timeline=_timeline(evidence, failures, cause)
        )
    if cause.name == "import-error":
        cause = _of_some_nodes(cause, first, failures, evidence)
    return replace(
        base,
        cause=cause,
        first=first,
        stragglers=find_stragglers(first, failures, evidence),
        notes=_notes(first, evidence),
        consequences=_consequences(failures, first, cause),
        timeline=_timeline(evidence, failures, cause),
        bad_nodes=_bad_nodes(cause, first, failures, evidence.silent),
    )


# ---- the cause


def _first(evidence: Evidence, failures: Sequence[Failure]) -> tuple[Failure | None, Cause]:
    """Return what failed first, and the cause of all."""
    whole = next((each for each in evidence.said if not each.host), None)
    if whole is not None:
        cause = causes.of_schedule(whole.sign, whole.words)
        return (None if cause.kind is Kind.STOPPED else _struck(failures)), cause
    if evidence.status.state == "succeeded":
        return None, Cause(Kind.SUCCEEDED, "succeeded", "it has succeeded: exit code 0")
    if evidence.status.state == "stopped" or evidence.status.was_stopped:
        return None, _stopped(evidence)
    first = first_failure(failures)
    if first is not None:
        return first, _unreachable(first, evidence) or _scheduled(first, evidence.said)
    return None, _of_state(evidence.status)


def _of_state(job: JobStatus) -> Cause:
    """Return what is to be said where nothing has ended badly."""
    reason = f" ({job.reason})" if job.reason else ""
    if job.state in ("pending", "starting", "running"):
        return Cause(Kind.RUNNING, job.state, f"it is {job.state}{reason}, and nothing of it has failed")
    if job.state == "unreachable":
        return Cause(Kind.UNKNOWN, "unreachable", f"nodes cannot be asked{reason}", "try again; fab doctor")
    return Cause(Kind.UNKNOWN, "unknown", f"it is {job.state}{reason}, and nothing tells why")


def _struck(failures: Sequence[Failure]) -> Failure | None:
    """Return what a scheduler struck: what a signal ended first; else what ended first."""
    return next((failure for failure in failures if (failure.code or 0) < 0), failures[0] if failures else None)


def _scheduled(first: Failure, said: Sequence[Said]) -> Cause:
    """Return what the scheduler says of the node of the first failure; else what the node itself tells."""
    mine = next((each for each in said if each.host == first.host), None)
    return causes.of_schedule(mine.sign, mine.words) if mine else first.cause


def _unreachable(first: Failure, evidence: Evidence) -> Cause | None:
    """Return that a node cannot be reached, where all that failed elsewhere is a wait in vain for somebody."""
    silent = evidence.silent
    if not silent or not (first.cause.is_symptom or first.cause.name == "rendezvous-timeout"):
        return None
    hosts = fold(list(silent))
    words = f"{hosts} cannot be reached ({next(iter(silent.values()))}); on {first.who}, {first.cause.words}"
    return Cause(
        Kind.NODE, "node-unreachable", words, f"see whether {hosts} runs, and its link; then fab why again", True
    )


def _stopped(evidence: Evidence) -> Cause:
    names = [event["event"] for event in evidence.events]
    words = "it was asked to stop, by a fab stop that was not run from here"
    if "stop" in names:
        words = "it was stopped with fab stop, from here"
    elif "stopped after a failure" in names:
        words = "it was stopped by fab, which followed it, after a failure"
    reason = evidence.status.reason
    return Cause(Kind.STOPPED, "stopped", reason or words)


def _of_some_nodes(cause: Cause, first: Failure, failures: Sequence[Failure], evidence: Evidence) -> Cause:
    """Say of an import error whether nodes differ: where ranks of others got further, those of the error are sick."""
    hosts = list(dict.fromkeys(failure.host for failure in failures if failure.cause.name == "import-error"))
    further = [node.host for node in evidence.nodes if node.host not in hosts and _lived_longer(node.status, first)]
    if not further:
        return cause
    words = f"{cause.words}, on {fold(hosts)} only: {fold(further)} got further"
    return replace(cause, kind=Kind.NODE, name="import-error-of-node", words=words)


def _lived_longer(status: NodeStatus, first: Failure) -> bool:
    lives = [(rank["ended"] or status.now) - rank["started"] for rank in status.ranks if rank["started"]]
    return max(lives, default=0.0) > first.lived_s + 1.0


def _bad_nodes(cause: Cause, first: Failure, failures: Sequence[Failure], silent: Iterable[str]) -> tuple[str, ...]:
    if cause.kind is not Kind.NODE:
        return ()
    if cause.name == "node-unreachable":
        return tuple(silent)
    same = [failure.host for failure in failures if failure.cause.name == first.cause.name and failure.weight <= LOST]
    return tuple(dict.fromkeys([first.host, *same]))


# ---- what else is known


def _notes(first: Failure, evidence: Evidence) -> tuple[str, ...]:
    node = next(each for each in evidence.nodes if each.host == first.host)
    full = [disk for disk in node.disks if disk.size and disk.free < _NEARLY_FULL_BYTES]
    disks = [f"{first.host}: {disk.path} has {disk.free / 1e6:.1f} of {disk.size / 1e6:.0f} MB free" for disk in full]
    kernel = [line.text for line in node.kernel if line.text not in first.cause.words][:_MOST_KERNEL_LINES]
    said = [f"the kernel of {first.host} said: {text}" for text in kernel]
    return (*disks, *said, *_notes_of_state(evidence))


def _notes_of_state(evidence: Evidence) -> tuple[str, ...]:
    """Return what is to be said of a job whatever its state."""
    batch = [line for line in evidence.batch.splitlines() if line.strip()][-_MOST_BATCH_LINES:] if evidence.said else []
    restarts = max((rank["attempt"] for node in evidence.nodes for rank in node.status.ranks), default=0)
    times = "once" if restarts == 1 else f"{restarts} times"
    found = [f"the batch script said: {line[:300]}" for line in batch]
    found += [f"torchrun had restarted its ranks {times} before"] if restarts else []
    for node in evidence.nodes:
        if node.status.left:
            found.append(f"on {node.host} there still runs {node.status.left[0]}: fab stop {evidence.job}")
    if evidence.status.state in ("running", "starting"):
        found += [each.words for each in halted(evidence)]
    return tuple(found)


def _consequences(failures: Sequence[Failure], first: Failure | None, cause: Cause) -> tuple[str, ...]:
    """Return what the others did, those that did the same as one line."""
    groups: dict[str, list[Failure]] = {}
    for failure in failures:
        if failure is not first:
            groups.setdefault(_short(failure, cause), []).append(failure)
    return tuple(f"{_where(group)}: {words}" for words, group in groups.items())


def _short(failure: Failure, cause: Cause) -> str:
    if failure.cause.kind is Kind.STOPPED:
        return "ended by fab, which stopped the rest"
    if failure.cause.name in ("by-launcher", "by-supervisor"):
        return failure.cause.words
    if failure.weight == CONSEQUENCE or failure.cause.name == "asked":
        return f"ended by {code_words(failure.code or 0)} after it"
    if failure.cause.is_symptom:  # addresses and numbers differ
        return failure.cause.words.partition(":")[0]
    return failure.cause.words


def _where(group: Sequence[Failure]) -> str:
    hosts = fold(list(dict.fromkeys(failure.host for failure in group)))
    ranks = [failure.rank for failure in group if failure.rank is not None]
    if not ranks:
        return hosts
    return f"{hosts} rank{'s' if len(set(ranks)) > 1 else ''} {fold_ranks(ranks)}"


def _timeline(evidence: Evidence, failures: Sequence[Failure], cause: Cause) -> tuple[TimelineEvent, ...]:
    """Return all that happened in the order of time; of what many ranks did within the same second, one moment."""
    groups: dict[tuple[str, int], list[Failure]] = {}
    for failure in failures:
        words = "last sign of life" if failure.weight == LOST else _short(failure, cause)
        groups.setdefault((words, int(failure.time)), []).append(failure)
    found = [TimelineEvent(group[0].time, _where(group), words) for (words, _), group in groups.items()]
    found.append(TimelineEvent(evidence.created, "", "launched"))
    for node in evidence.nodes:
        found += [TimelineEvent(line.time, f"kernel of {node.host}", line.text) for line in node.kernel]
    for event in evidence.events:
        if event["event"] in ("stop", "stopped after a failure"):
            found.append(TimelineEvent(event["time"], "", f"fab: {event['event']}"))
    return tuple(sorted(found, key=lambda moment: moment.time)[:_MOST_MOMENTS])

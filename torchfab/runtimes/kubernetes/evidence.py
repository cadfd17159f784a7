"""Evidence for `fab why` on Kubernetes: each rank's tracebacks and last log lines, and the cluster's own reasons."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torchfab.core.status import JobStatus, NodeStatus, State
from torchfab.records import Record
from torchfab.runtimes.kubernetes import archive, reasons
from torchfab.runtimes.kubernetes.client import Cluster, ClusterError
from torchfab.runtimes.kubernetes.log_lines import Line, PodLogReader
from torchfab.runtimes.kubernetes.log_search import OpenLog, find_tracebacks
from torchfab.runtimes.kubernetes.query import event_time
from torchfab.runtimes.kubernetes.status import JobSnapshot, Object, container_status, has_started, parse_time
from torchfab.transport.fanout import fan_out
from torchfab.why.evidence import Evidence, Log, NodeEvidence, SchedulerReason

_UNREAD = "a pod does not show it"
_TAIL_LINES = 400  # per rank
_LONGEST_LINE = 1000
_FANOUT = 32
# Reasons of events about pods that were removed before they could fail, and the same reasons in a pod's conditions.
_REMOVALS = {"Preempted": "PreemptionByScheduler", "TaintManagerEviction": "DeletionByTaintManager"}


def collect(cluster: Cluster | None, record: Record, snapshot: JobSnapshot, job: JobStatus) -> Evidence:
    """Collect the evidence of a job.

    Parameters
    ----------
    cluster : Cluster, optional
        None if the cluster holds no object of the job any more: read the archived logs.
    record : Record
        The job.
    snapshot : JobSnapshot
        The state of its objects.
    job : JobStatus
        The status that `job_status` derived from `snapshot`.

    Returns
    -------
    Evidence
        Logs and status by node, and the cluster's reasons.
    """
    nodes: dict[int, NodeEvidence] = {}
    removed = _removed(cluster, snapshot, job)

    def collect_node(status: NodeStatus) -> NodeEvidence:
        return _node_evidence(cluster, record, status, snapshot.pods_of(status.node.rank))

    for status, found in fan_out(job.nodes, collect_node, _FANOUT):
        # An unreadable log must not hide the status of its node.
        nodes[status.node.rank] = NodeEvidence(status) if isinstance(found, Exception) else found
    ordered = tuple(_as_lost(nodes[status.node.rank], removed) for status in job.nodes)
    by_node = (_scheduler_reasons(status, snapshot.pods_of(status.node.rank)) for status in job.nodes)
    scheduler_reasons = (*_deadline(snapshot.job), *removed.values(), *itertools.chain.from_iterable(by_node))
    events, ranks = record.events(), record.fixed_world_size
    return Evidence(record.name, record.created, job, ordered, scheduler_reasons, events, world_size=ranks)


def _node_evidence(cluster: Cluster | None, record: Record, status: NodeStatus, pods: Sequence[Object]) -> NodeEvidence:
    if not pods or not has_started(pods[-1]):
        return NodeEvidence(status, kernel_unread=_UNREAD)
    name, ranks = pods[-1]["metadata"]["name"], record.details["ranks_per_node"]
    first_rank = status.node.rank * ranks

    def open_log(**query: object) -> Iterable[bytes]:
        if cluster is None:  # the archive is read whole
            return archive.load_log(record, name) or ()
        return cluster.log(name, follow=False, **query)

    reader = PodLogReader(first_rank, {"ranks": None, "grep": None, "lines": _TAIL_LINES})
    lines = reader.read_backlog(open_log(tailLines=_TAIL_LINES * (ranks + 1)))
    if len(lines) >= _TAIL_LINES:  # else this is all of the log
        lines = [*_earlier_lines(open_log, first_rank, lines), *lines]
    return NodeEvidence(status, _logs(name, lines), kernel_unread=_UNREAD)


def _earlier_lines(open_log: OpenLog, first_rank: int, last: Sequence[Line]) -> list[Line]:
    """Return the lines around tracebacks that are not among the last lines of their rank, a blank one before each."""
    first_time: dict[object, float] = {}
    for label, when, _ in last:
        first_time.setdefault(label, when)
    try:
        windows = find_tracebacks(open_log, max(first_time.values()))
    except ClusterError:  # the last lines are read already
        return []
    found: list[Line] = []
    for window in windows:
        reader = PodLogReader(first_rank, {"ranks": None, "grep": None, "lines": None})
        own = [line for line in reader.new_lines([window]) if line[1] < first_time.get(line[0], math.inf)]
        found += [[label, when, ""] for label, when in {line[0]: line[1] for line in reversed(own)}.items()] + own
    return found


# ---- pods that the cluster has removed


def _removed(cluster: Cluster | None, snapshot: JobSnapshot, job: JobStatus) -> dict[str, SchedulerReason]:
    """Return why the cluster removed pods, by node: its events remain for an hour after the pods."""
    gone = {f"{status.node.label}-": status.node.label for status in job.nodes if _is_gone(status, snapshot)}
    if cluster is None or snapshot.job is None or not gone:
        return {}
    try:
        events = cluster.list("Event", fields="involvedObject.kind=Pod")
    except ClusterError:  # reading events may be forbidden
        return {}
    found: dict[str, SchedulerReason] = {}
    since = parse_time(snapshot.job["metadata"].get("creationTimestamp")) or 0.0
    for event in sorted(events, key=event_time):
        pod, reason = event.get("involvedObject", {}).get("name", ""), _REMOVALS.get(event.get("reason") or "", "")
        host = next((label for prefix, label in gone.items() if pod.startswith(prefix)), "")
        if host and reason and event_time(event) >= since - 1:
            words = f"{reasons.DISRUPTIONS[reason]}: {' '.join(str(event.get('message') or '').split())[:300]}"
            found.setdefault(host, SchedulerReason(reason, words, host, event_time(event)))
    return found


def _is_gone(status: NodeStatus, snapshot: JobSnapshot) -> bool:
    return status.state in ("stopped", "failed", "lost") and not snapshot.pods_of(status.node.rank)


def _as_lost(node: NodeEvidence, removed: Mapping[str, SchedulerReason]) -> NodeEvidence:
    reason = removed.get(node.host)
    if reason is None:
        return node
    return replace(node, status=replace(node.status, state=State.LOST, reason=reason.words))


def _deadline(job: Object | None) -> list[SchedulerReason]:
    """Return the reason of a Job that the cluster ended because its deadline had passed."""
    for condition in (job or {}).get("status", {}).get("conditions") or ():
        has_failed = condition["type"] == "Failed" and condition["status"] == "True"
        if has_failed and condition.get("reason") == "DeadlineExceeded":
            words = f"the cluster's deadline for it has passed: {condition.get('message') or 'DeadlineExceeded'}"
            return [SchedulerReason("DeadlineExceeded", words)]
    return []


def _logs(pod: str, lines: Sequence[Line]) -> tuple[Log, ...]:
    texts: dict[int | str, list[Line]] = {}
    for line in lines:
        texts.setdefault(line[0], []).append(line)
    return tuple(
        Log(label, f"pod {pod}", "\n".join(text[:_LONGEST_LINE] for _, _, text in own), own[-1][1], _times(own))
        for label, own in texts.items()
    )


def _times(lines: Sequence[Line]) -> tuple[tuple[int, float], ...]:
    return tuple((number, when) for number, (_, when, _) in enumerate(lines))


def _scheduler_reasons(status: NodeStatus, pods: Sequence[Object]) -> list[SchedulerReason]:
    """Return the cluster's reason for the end of a node's newest pod; empty if the cluster did not end it."""
    if not pods or status.state not in ("failed", "lost", "pending"):
        return []
    ended: Mapping[str, object] = (container_status(pods[-1]).get("state") or {}).get("terminated") or {}
    name = reasons.reason_name(pods[-1], ended)
    return [SchedulerReason(name, reasons.failure_reason(pods[-1], ended), status.node.label)] if name else []

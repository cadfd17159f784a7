"""Status of a job's pods: pure functions from the cluster's objects, as JSON, to states and ranks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime
from typing import Any

import msgspec

from torchfab.core.flag_values import is_whole
from torchfab.core.inventory import fold
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.core.status import (
    JobStatus,
    LastLine,
    NodeStatus,
    ProcessStatus,
    RankStatus,
    ReportedExit,
    State,
    Verdict,
)
from torchfab.remote.job.status import parse_failures
from torchfab.runtimes.kubernetes import reasons

Object = Mapping[str, Any]
_INDEX = "batch.kubernetes.io/job-completion-index"
_TIME = re.compile(r"(?P<whole>[^.Z+]+?)(?:\.(?P<rest>[0-9]+))?(?P<zone>Z|[+-][0-9]{2}:[0-9]{2})?", re.DOTALL)


@dataclass(frozen=True)
class JobSnapshot:
    """State of a job's objects in the cluster at one time.

    Parameters
    ----------
    job : Mapping, optional
        The Job or JobSet; None if it does not exist any more.
    pods : sequence of Mapping
        Its pods, including replaced ones.
    warnings : Mapping of str to str
        Newest warning event by name of the pod or job.
    last_lines : Mapping of str to Mapping
        Time and text of the last log line by name of the pod.
    now : float
        Time of the query, in seconds since the epoch.
    """

    job: Object | None
    pods: Sequence[Object]
    warnings: Mapping[str, str] = field(default_factory=dict)
    last_lines: Mapping[str, Object] = field(default_factory=dict)
    now: float = 0.0

    def pods_of(self, index: int) -> list[Object]:
        """Return the pods of one completion index.

        Parameters
        ----------
        index : int
            The index, which is the node rank.

        Returns
        -------
        list of Mapping
            The pods, newest last.
        """
        own = [pod for pod in self.pods if index_of(pod) == index]
        return sorted(own, key=lambda pod: parse_time(pod["metadata"].get("creationTimestamp")) or 0.0)


def parse_time(text: str | None) -> float | None:
    """Parse a time in RFC 3339 format. Log lines use the time zone of the machine that writes them.

    Parameters
    ----------
    text : str, optional
        The time.

    Returns
    -------
    float, optional
        Seconds since the epoch; None if the text is not a time.
    """
    match = _TIME.fullmatch(text or "")
    if not match:
        return None
    zone = "+00:00" if match["zone"] in (None, "Z") else match["zone"]
    try:
        return datetime.fromisoformat(match["whole"] + zone).timestamp() + float(f"0.{match['rest'] or 0}")
    except (ValueError, OverflowError):
        return None


def index_of(pod: Object) -> int:
    """Return a pod's completion index in its Job, which is its node rank.

    Parameters
    ----------
    pod : Mapping
        The pod.

    Returns
    -------
    int
        The index; -1 if the pod has none.
    """
    meta = pod["metadata"]
    text = (meta.get("annotations") or {}).get(_INDEX) or (meta.get("labels") or {}).get(_INDEX) or ""
    return int(text) if is_whole(text) else -1


# ---- the job


def job_status(
    nodes: Sequence[Node], snapshot: JobSnapshot, details: Mapping[str, Any], stopped: float | None
) -> JobStatus:
    """Return the status of a job.

    Parameters
    ----------
    nodes : sequence of Node
        The job's nodes.
    snapshot : JobSnapshot
        The state of its objects; of a stopped job, the archived state.
    details : Mapping
        Details of the record: `ranks_per_node`, `max_restarts`, `queue`.
    stopped : float, optional
        When `fab stop` stopped the job, in seconds since the epoch.

    Returns
    -------
    JobStatus
        The status of the job and of each node.
    """
    end = job_outcome(snapshot.job)
    found = tuple(_node_status(node, snapshot, details, end) for node in nodes)
    if stopped is not None:
        found = tuple(_stopped(each, stopped) for each in found)
    return JobStatus(found, len(nodes), _verdict(found, snapshot, end, stopped))


def _verdict(
    nodes: Sequence[NodeStatus], snapshot: JobSnapshot, end: tuple[State, str] | None, stopped: float | None
) -> Verdict:
    states = {node.state for node in nodes}
    if stopped is not None and "stopped" in states and "failed" not in states:
        return Verdict(State.STOPPED, ended=True)
    if snapshot.job is None and snapshot.pods:
        return Verdict(State.RUNNING, reason="its Job is gone, and its pods are ending")
    if snapshot.job is None and "lost" in states:
        return Verdict(State.LOST, ended=True, reason=next(node.reason for node in nodes if node.state == "lost"))
    if end and end[0] == "failed" and "failed" not in states:
        return Verdict(State.FAILED, ended=True, reason=f"the cluster ended it: {end[1]}")
    if "pending" in states and not end:
        return Verdict(State.PENDING, reason=_pending_reason(nodes))
    return Verdict(ended=all(node.has_ended for node in nodes))


def _pending_reason(nodes: Sequence[NodeStatus]) -> str:
    """Return why nodes are pending; nodes with the same reason are grouped."""
    waiting: dict[str, list[str]] = {}
    for node in nodes:
        if node.state == "pending":
            waiting.setdefault(node.reason, []).append(node.node.label)
    return "; ".join(f"{fold(labels)}: {reason}" for reason, labels in waiting.items())


def _stopped(status: NodeStatus, time: float) -> NodeStatus:
    """Return a node's status after a stop: processes that were still running then ended at `time`."""
    if status.state in (State.SUCCEEDED, State.FAILED, State.STOPPED):
        return replace(status, stop_asked=time)
    processes = tuple(
        msgspec.structs.replace(each, state=State.STOPPED, ended=each.ended or time) for each in status.processes
    )
    return replace(status, state=State.STOPPED, reason="", processes=processes, stop_asked=time)


# ---- a node


def job_outcome(job: Object | None) -> tuple[State, str] | None:
    """Return how a Job or JobSet ended.

    Parameters
    ----------
    job : Mapping, optional
        The Job or JobSet.

    Returns
    -------
    tuple of State and str, optional
        SUCCEEDED or FAILED, and the reason; None if it has not ended.
    """
    for condition in (job or {}).get("status", {}).get("conditions") or ():
        kind = condition["type"]
        if condition["status"] == "True" and kind in ("Complete", "Completed", "Failed"):
            reason = ": ".join(filter(None, (condition.get("reason"), condition.get("message"))))
            return (State.FAILED if kind == "Failed" else State.SUCCEEDED), reason
    return None


def _node_status(
    node: Node, snapshot: JobSnapshot, details: Mapping[str, Any], end: tuple[State, str] | None
) -> NodeStatus:
    pods = snapshot.pods_of(node.rank)
    if not pods:
        state, reason = _without_pod(snapshot, details, end)
        return NodeStatus(node, state, reason, (), snapshot.now)
    process = _process(pods[-1], node, snapshot, details)
    state, reason = process.state, process.reason
    if end and state not in (State.SUCCEEDED, State.FAILED):
        state, reason = _ended_by_cluster(end)
    elif state == State.FAILED and _ended_by_deletion(pods[-1], process.ended):
        state, reason = State.STOPPED, ""
    elif state == State.FAILED and not end and details["max_restarts"] and snapshot.job is not None:
        state, reason = State.PENDING, f"its pod failed ({_describe_failure(process)}); another one will come"
    shown = reason if state in (State.FAILED, State.LOST) else ""
    process = msgspec.structs.replace(process, state=state, reason=shown)
    return NodeStatus(node, state, reason or _machine_note(pods[-1], state), (process,), snapshot.now)


def _without_pod(snapshot: JobSnapshot, details: Mapping[str, Any], end: tuple[State, str] | None) -> tuple[State, str]:
    if snapshot.job is None and snapshot.pods:
        return State.RUNNING, "is being deleted"
    if snapshot.job is None:
        return State.LOST, "its Job is gone from the cluster: somebody deleted it"
    if end:
        return _ended_by_cluster(end)
    if snapshot.job["spec"].get("suspend"):
        queue = details["queue"]
        return (
            State.PENDING,
            f"waits in the queue {queue} (Kueue has not admitted it)" if queue else "its Job is suspended",
        )
    warning = snapshot.warnings.get(snapshot.job["metadata"]["name"], "")
    return State.PENDING, f"its pod cannot be created: {warning}" if warning else "its pod is not created yet"


def _ended_by_cluster(end: tuple[State, str]) -> tuple[State, str]:
    return (State.STOPPED, f"the cluster ended it: {end[1]}") if end[0] == State.FAILED else (State.SUCCEEDED, "")


def _ended_by_deletion(pod: Object, ended: float | None) -> bool:
    """Return whether a pod ended after its deletion was requested: its failure is then a consequence."""
    meta = pod["metadata"]
    deadline = parse_time(meta.get("deletionTimestamp"))  # the end of its grace period
    return deadline is not None and (ended or deadline) >= deadline - (meta.get("deletionGracePeriodSeconds") or 0) - 1


def _machine_note(pod: Object, state: State) -> str:
    machine = pod["spec"].get("nodeName")
    return f"on {machine}" if machine and state == State.RUNNING else ""


def _describe_failure(process: ProcessStatus) -> str:
    ranks = [rank for rank in process.ranks if rank.code]
    if ranks:
        return f"rank {ranks[0].rank}: exit code {ranks[0].code}"
    return process.reason or f"exit code {process.code}"


# ---- a pod


def _process(pod: Object, node: Node, snapshot: JobSnapshot, details: Mapping[str, Any]) -> ProcessStatus:
    container = container_status(pod)
    container_state = container.get("state") or {}
    ended = container_state.get("terminated")
    running = container_state.get("running") or {}
    state, reason = _pod_state(pod, container_state, snapshot)
    started = parse_time((ended or running).get("startedAt"))
    finished = parse_time(ended.get("finishedAt")) if ended else None
    code = exit_code(ended["exitCode"]) if ended else None
    message = (ended or {}).get("message") or ""
    reported = parse_failures(message)
    line = snapshot.last_lines.get(pod["metadata"]["name"])
    if state == State.FAILED and not reason and not reported and not _first_failure(message):
        reason = reasons.last_line(message)
    ended_at = finished or ((_last_change(pod) or snapshot.now) if state in (State.FAILED, State.SUCCEEDED) else None)
    return ProcessStatus(
        name=pod["metadata"]["name"],
        state=state,
        reason=reason,
        pid=None,
        started=started,
        ended=ended_at,
        code=code if code is not None or state != State.FAILED else 1,
        signal=None,
        ranks=_ranks(node.rank, details, started, ended_at, code, message) if started else [],
        last_line=LastLine(**line) if line else None,
        reported=[ReportedExit(**each) for each in reported],
        warned=None,
    )


def _last_change(pod: Object) -> float | None:
    """Return when a pod's conditions last changed: an evicted pod may have no other end time."""
    conditions = pod.get("status", {}).get("conditions") or ()
    return max(filter(None, (parse_time(each.get("lastTransitionTime")) for each in conditions)), default=None)


def container_status(pod: Object) -> Mapping[str, Any]:
    """Return the status of a pod's container.

    Parameters
    ----------
    pod : Mapping
        The pod.

    Returns
    -------
    Mapping
        The status as JSON; empty if the container has none yet.
    """
    statuses = pod.get("status", {}).get("containerStatuses") or [{}]
    found: Mapping[str, Any] = statuses[0]
    return found


def has_started(pod: Object) -> bool:
    """Return whether a pod's container runs or has run, so that a log exists.

    Parameters
    ----------
    pod : Mapping
        The pod.

    Returns
    -------
    bool
        False while the container is waiting.
    """
    state = container_status(pod).get("state") or {}
    return "running" in state or "terminated" in state


def is_running(pod: Object) -> bool:
    """Return whether a pod's container runs.

    Parameters
    ----------
    pod : Mapping
        The pod.

    Returns
    -------
    bool
        False before its start and after its end.
    """
    return "running" in (container_status(pod).get("state") or {})


def exit_code(code: int) -> int:
    """Convert a container's exit code to torchfab's form: -9 for SIGKILL, not 137.

    Parameters
    ----------
    code : int
        The exit code in the container's status.

    Returns
    -------
    int
        The exit code, or the negative signal number.
    """
    return 128 - code if 128 < code <= 192 else code


def _ranks(
    index: int, details: Mapping[str, Any], started: float, ended: float | None, code: int | None, message: str
) -> list[RankStatus]:
    """Return the ranks of a pod. They are derived from its index, because the rendezvous is static."""
    count = details["ranks_per_node"]
    failed, own_ends = _first_failure(message), _ends(message)
    ranks = []
    for local in range(count):
        rank = index * count + local
        end, rank_code = ended, 0 if code == 0 else None
        if failed and failed["rank"] == rank:
            end, rank_code = failed["time"], failed["code"]
        elif local in own_ends:
            rank_code, own_end = own_ends[local]
            end = own_end or ended
        ranks.append(
            RankStatus(
                rank=rank,
                local_rank=local,
                world_size=None,
                pid=None,
                start_time=None,
                attempt=0,
                started=started,
                ended=end,
                code=rank_code,
            )
        )
    return ranks


def _first_failure(message: str) -> dict[str, Any] | None:
    """Parse the rank that failed first from the termination message that the pod's entrypoint wrote."""
    try:
        values = json.loads(message)
        return {"rank": int(values["rank"]), "code": int(values["code"]), "time": float(values["time"])}
    except (ValueError, KeyError, TypeError):
        return None


def _ends(message: str) -> dict[int, tuple[int, float | None]]:
    """Parse exit code and time of the ranks that ended by themselves, by local rank, from the termination message."""
    try:
        values = json.loads(message)["ends"]
        return {int(local): (int(code), None if when is None else float(when)) for local, code, when in values}
    except (ValueError, KeyError, TypeError):
        return {}


def _pod_state(pod: Object, container_state: Mapping[str, Any], snapshot: JobSnapshot) -> tuple[State, str]:
    phase = pod.get("status", {}).get("phase", "Pending")
    if "terminated" in container_state or phase in ("Failed", "Succeeded"):
        ended = container_state.get("terminated") or {}
        if phase == "Succeeded" or (phase != "Failed" and ended.get("exitCode") == 0):
            return State.SUCCEEDED, ""
        return State.FAILED, reasons.failure_reason(pod, ended)
    if phase == "Unknown":
        return State.UNREACHABLE, f"its machine {pod['spec'].get('nodeName', '')} does not answer"
    if "running" in container_state:
        return State.RUNNING, "is being stopped" if pod["metadata"].get("deletionTimestamp") else ""
    return reasons.waiting_state(
        pod, container_state.get("waiting") or {}, snapshot.warnings.get(pod["metadata"]["name"], "")
    )

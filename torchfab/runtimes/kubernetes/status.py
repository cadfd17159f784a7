"""How the pods of a job are: pure functions from the cluster's objects, as JSON, to states and ranks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from torchfab.core.flag_values import is_whole
from torchfab.core.inventory import fold
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus, Verdict
from torchfab.remote.job.status import failures_in
from torchfab.runtimes.kubernetes import reasons

Object = Mapping[str, Any]
_INDEX = "batch.kubernetes.io/job-completion-index"
_TIME = re.compile(r"(?P<whole>[^.Z+]+?)(?:\.(?P<rest>[0-9]+))?(?P<zone>Z|[+-][0-9]{2}:[0-9]{2})?", re.DOTALL)


@dataclass(frozen=True)
class Seen:
    """What the cluster holds of a job at one moment.

    Parameters
    ----------
    job : Mapping, optional
        The Job or JobSet; None when it is gone.
    pods : sequence of Mapping
        Its pods, replaced ones too.
    warnings : Mapping of str to str
        Name of a pod, or of the job -> the newest warning about it.
    last_lines : Mapping of str to Mapping
        Name of a pod -> time and text of the last line of its log.
    now : float
        When it was asked, in seconds since the epoch.
    """

    job: Object | None
    pods: Sequence[Object]
    warnings: Mapping[str, str] = field(default_factory=dict)
    last_lines: Mapping[str, Object] = field(default_factory=dict)
    now: float = 0.0

    def pods_of(self, index: int) -> list[Object]:
        """Return the pods of one index, the newest last."""
        own = [pod for pod in self.pods if index_of(pod) == index]
        return sorted(own, key=lambda pod: seconds(pod["metadata"].get("creationTimestamp")) or 0.0)


def seconds(text: str | None) -> float | None:
    """Return a time (RFC 3339) in seconds since the epoch; a log's is in the time zone of the machine it comes from."""
    match = _TIME.fullmatch(text or "")
    if not match:
        return None
    zone = "+00:00" if match["zone"] in (None, "Z") else match["zone"]
    try:
        return datetime.fromisoformat(match["whole"] + zone).timestamp() + float(f"0.{match['rest'] or 0}")
    except (ValueError, OverflowError):
        return None


def index_of(pod: Object) -> int:
    """Return a pod's index in its Job, which is its node rank; -1 when it has none."""
    meta = pod["metadata"]
    text = (meta.get("annotations") or {}).get(_INDEX) or (meta.get("labels") or {}).get(_INDEX) or ""
    return int(text) if is_whole(text) else -1


# ---- the job


def job_status(nodes: Sequence[Node], seen: Seen, details: Mapping[str, Any], stopped: float | None) -> JobStatus:
    """Return how a job is.

    Parameters
    ----------
    details : Mapping
        Of the record: `ranks_per_node`, `max_restarts`, `queue`.
    stopped : float, optional
        When it was stopped by us, in seconds since the epoch; it was `seen` then.
    """
    end = end_of(seen.job)
    found = tuple(_node_status(node, seen, details, end) for node in nodes)
    if stopped is not None:
        found = tuple(_stopped(each, stopped) for each in found)
    return JobStatus(found, len(nodes), _verdict(found, seen, end, stopped))


def _verdict(nodes: Sequence[NodeStatus], seen: Seen, end: tuple[str, str] | None, stopped: float | None) -> Verdict:
    states = {node.state for node in nodes}
    if stopped is not None and "stopped" in states and "failed" not in states:
        return Verdict("stopped", ended=True)
    if seen.job is None and seen.pods:
        return Verdict("running", reason="its Job is gone, and its pods are ending")
    if seen.job is None and "lost" in states:
        return Verdict("lost", ended=True, reason=next(node.reason for node in nodes if node.state == "lost"))
    if end and end[0] == "failed" and "failed" not in states:
        return Verdict("failed", ended=True, reason=f"the cluster ended it: {end[1]}")
    if "pending" in states and not end:
        return Verdict("pending", reason=_pending_words(nodes))
    return Verdict(ended=all(node.has_ended for node in nodes))


def _pending_words(nodes: Sequence[NodeStatus]) -> str:
    """Return why nodes wait, those that wait for the same named together."""
    waiting: dict[str, list[str]] = {}
    for node in nodes:
        if node.state == "pending":
            waiting.setdefault(node.reason, []).append(node.node.label)
    return "; ".join(f"{fold(labels)}: {reason}" for reason, labels in waiting.items())


def _stopped(status: NodeStatus, when: float) -> NodeStatus:
    """Return a node's status once it was stopped: what had not ended by then has."""
    if status.state in ("succeeded", "failed", "stopped"):
        return replace(status, stop_asked=when)
    processes = tuple({**each, "state": "stopped", "ended": each["ended"] or when} for each in status.processes)
    return replace(status, state="stopped", reason="", processes=processes, stop_asked=when)


# ---- a node


def end_of(job: Object | None) -> tuple[str, str] | None:
    """Return how a Job or JobSet has ended, succeeded or failed, and why in words; None while it has not."""
    for condition in (job or {}).get("status", {}).get("conditions") or ():
        kind = condition["type"]
        if condition["status"] == "True" and kind in ("Complete", "Completed", "Failed"):
            reason = ": ".join(filter(None, (condition.get("reason"), condition.get("message"))))
            return ("failed" if kind == "Failed" else "succeeded"), reason
    return None


def _node_status(node: Node, seen: Seen, details: Mapping[str, Any], end: tuple[str, str] | None) -> NodeStatus:
    pods = seen.pods_of(node.rank)
    if not pods:
        state, reason = _without_pod(seen, details, end)
        return NodeStatus(node, state, reason, (), seen.now)
    process = _process(pods[-1], node, seen, details)
    state, reason = process["state"], process["reason"]
    if end and state not in ("succeeded", "failed"):
        state, reason = ("stopped", f"the cluster ended it: {end[1]}") if end[0] == "failed" else ("succeeded", "")
    elif state == "failed" and _was_asked_to_end(pods[-1], process["ended"]):
        state, reason = "stopped", ""
    elif state == "failed" and not end and details["max_restarts"] and seen.job is not None:
        state, reason = "pending", f"its pod failed ({_failure_words(process)}); another one will come"
    process.update(state=state, reason=reason if state in ("failed", "lost") else "")
    return NodeStatus(node, state, reason or _where(pods[-1], state), (process,), seen.now)


def _without_pod(seen: Seen, details: Mapping[str, Any], end: tuple[str, str] | None) -> tuple[str, str]:
    if seen.job is None and seen.pods:
        return "running", "is being deleted"
    if seen.job is None:
        return "lost", "its Job is gone from the cluster: somebody deleted it"
    if end:
        return ("stopped", f"the cluster ended it: {end[1]}") if end[0] == "failed" else ("succeeded", "")
    if seen.job["spec"].get("suspend"):
        queue = details["queue"]
        return "pending", f"waits in the queue {queue} (Kueue has not admitted it)" if queue else "its Job is suspended"
    warning = seen.warnings.get(seen.job["metadata"]["name"], "")
    return "pending", f"its pod cannot be made: {warning}" if warning else "its pod is not made yet"


def _was_asked_to_end(pod: Object, ended: float | None) -> bool:
    """Say whether a pod had been asked to end when it did: its failure is a consequence then."""
    meta = pod["metadata"]
    last = seconds(meta.get("deletionTimestamp"))  # the end of its grace
    return last is not None and (ended or last) >= last - (meta.get("deletionGracePeriodSeconds") or 0) - 1


def _where(pod: Object, state: str) -> str:
    machine = pod["spec"].get("nodeName")
    return f"on {machine}" if machine and state == "running" else ""


def _failure_words(process: Mapping[str, Any]) -> str:
    ranks = [rank for rank in process["ranks"] if rank["code"]]
    if ranks:
        return f"rank {ranks[0]['rank']}: exit code {ranks[0]['code']}"
    return str(process["reason"] or f"exit code {process['code']}")


# ---- a pod


def _process(pod: Object, node: Node, seen: Seen, details: Mapping[str, Any]) -> dict[str, Any]:
    container = container_of(pod)
    told = container.get("state") or {}
    ended = told.get("terminated")
    running = told.get("running") or {}
    state, reason = _state(pod, told, seen)
    started = seconds((ended or running).get("startedAt"))
    finished = seconds(ended.get("finishedAt")) if ended else None
    code = as_code(ended["exitCode"]) if ended else None
    message = (ended or {}).get("message") or ""
    reported = failures_in(message)
    if state == "failed" and not reason and not reported and not _told(message):
        reason = reasons.last_of(message)
    over = finished or ((_last_change(pod) or seen.now) if state in ("failed", "succeeded") else None)
    return {
        "name": pod["metadata"]["name"],
        "state": state,
        "reason": reason,
        "pid": None,
        "started": started,
        "ended": over,
        "code": code if code is not None or state != "failed" else 1,
        "signal": None,
        "ranks": _ranks(node.rank, details, started, over, code, message) if started else [],
        "last_line": seen.last_lines.get(pod["metadata"]["name"]),
        "reported": reported,
    }


def _last_change(pod: Object) -> float | None:
    """Return when a pod's conditions last changed: of one that was evicted nothing else may tell when it ended."""
    conditions = pod.get("status", {}).get("conditions") or ()
    return max(filter(None, (seconds(each.get("lastTransitionTime")) for each in conditions)), default=None)


def container_of(pod: Object) -> Mapping[str, Any]:
    """Return the status of a pod's container; empty while it has none."""
    statuses = pod.get("status", {}).get("containerStatuses") or [{}]
    found: Mapping[str, Any] = statuses[0]
    return found


def has_started(pod: Object) -> bool:
    """Say whether a pod's container runs or has run, so that it has a log."""
    told = container_of(pod).get("state") or {}
    return "running" in told or "terminated" in told


def is_running(pod: Object) -> bool:
    """Say whether a pod's container runs."""
    return "running" in (container_of(pod).get("state") or {})


def as_code(code: int) -> int:
    """Return a container's exit code as we write it: -9 for SIGKILL, not 137."""
    return 128 - code if 128 < code <= 192 else code


def _ranks(
    index: int, details: Mapping[str, Any], started: float, ended: float | None, code: int | None, message: str
) -> list[dict[str, Any]]:
    """Return the ranks of a pod; they follow its index, as the rendezvous is static."""
    count = details["ranks_per_node"]
    failed = _told(message)
    ranks = []
    for local in range(count):
        rank = index * count + local
        end = {"ended": ended, "code": 0 if code == 0 else None}
        if failed and failed["rank"] == rank:
            end = {"ended": failed["time"], "code": failed["code"]}
        ranks.append(
            {
                "rank": rank,
                "local_rank": local,
                "world_size": None,
                "attempt": 0,
                "pid": None,
                "started": started,
                **end,
            }
        )
    return ranks


def _told(message: str) -> dict[str, Any] | None:
    """Return what the program in the pod left of the rank that failed first."""
    try:
        told = json.loads(message)
        return {"rank": int(told["rank"]), "code": int(told["code"]), "time": float(told["time"])}
    except (ValueError, KeyError, TypeError):
        return None


def _state(pod: Object, told: Mapping[str, Any], seen: Seen) -> tuple[str, str]:
    phase = pod.get("status", {}).get("phase", "Pending")
    if "terminated" in told or phase in ("Failed", "Succeeded"):
        ended = told.get("terminated") or {}
        if phase == "Succeeded" or (phase != "Failed" and ended.get("exitCode") == 0):
            return "succeeded", ""
        return "failed", reasons.of_failed(pod, ended)
    if phase == "Unknown":
        return "unreachable", f"its machine {pod['spec'].get('nodeName', '')} does not answer"
    if "running" in told:
        return "running", "is being stopped" if pod["metadata"].get("deletionTimestamp") else ""
    return reasons.of_waiting(pod, told.get("waiting") or {}, seen.warnings.get(pod["metadata"]["name"], ""))

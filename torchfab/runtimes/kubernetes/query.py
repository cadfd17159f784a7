"""Query all objects of a job from the cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torchfab.launchers.manifest.objects import ID_LABEL
from torchfab.records import Record
from torchfab.runtimes.kubernetes import archive, redaction
from torchfab.runtimes.kubernetes.client import Cluster, ClusterError
from torchfab.runtimes.kubernetes.log_lines import last_line
from torchfab.runtimes.kubernetes.redaction import ANNOTATION, Redact
from torchfab.runtimes.kubernetes.status import JobSnapshot, Object, has_started, index_of, parse_time
from torchfab.transport.fanout import fan_out

_MAX_WARNING_QUERIES = 16  # number of pods whose warnings are queried: further pods usually wait for the same reason
_FANOUT = 32


def selector(record: Record) -> str:
    """Return the label selector that matches all pods of a job.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    str
        The selector.
    """
    return f"{ID_LABEL}={record.details['id']}"


def load_snapshot(cluster: Cluster | None, record: Record, with_lines: bool) -> tuple[JobSnapshot, float | None]:
    """Return the state of a job's objects from the cluster; for a stopped job, from the archive.

    Parameters
    ----------
    cluster : Cluster, optional
        None if the cluster is known to hold no object of the job any more.
    record : Record
        The job.
    with_lines : bool
        Whether to read the last line of each pod's log.

    Returns
    -------
    tuple of JobSnapshot and float
        The state, and when the job was stopped, in seconds since the epoch; None if it was not stopped.

    Raises
    ------
    ClusterError
        The cluster cannot be reached, or rejected the request.
    """
    archived = archive.load(record)
    if cluster is None:
        assert archived is not None
        return archived
    snapshot = query_snapshot(cluster, record, with_lines)
    return archived if archived and snapshot.job is None and not snapshot.pods else (snapshot, None)


def query_snapshot(cluster: Cluster, record: Record, with_lines: bool) -> JobSnapshot:
    """Query the current state of a job's objects, and set the cluster's redaction to the job's secrets.

    Parameters
    ----------
    cluster : Cluster
        The cluster.
    record : Record
        The job.
    with_lines : bool
        Whether to read the last line of each pod's log.

    Returns
    -------
    JobSnapshot
        The state.

    Raises
    ------
    ClusterError
        The cluster cannot be reached, or rejected the request.
    """
    details = record.details
    job = cluster.get(details["kind"], details["name"])
    if job and (job["metadata"].get("labels") or {}).get(ID_LABEL) != details["id"]:
        job = None  # the object belongs to another launch of the same name
    pods = cluster.list("Pod", selector(record))
    cluster.redact = redaction.redactor(pods, record.mask_key) or cluster.redact
    pods = [_trim(pod, cluster.redact) for pod in pods]
    lines = _last_lines(cluster, pods, details["ranks_per_node"]) if with_lines else {}
    return JobSnapshot(job and _trim(job, cluster.redact), pods, _warnings(cluster, job, pods), lines, time.time())


def _trim(item: Object, redact: Redact | None) -> dict[str, Any]:
    """Return the fields of an object that status and reasons use: without container arguments and without secrets."""
    metadata = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
    annotations = metadata.get("annotations") or {}
    metadata["annotations"] = {key: value for key, value in annotations.items() if key != ANNOTATION}
    spec = {key: item.get("spec", {}).get(key) for key in ("nodeName", "suspend")}
    containers = item.get("spec", {}).get("containers") or []
    trimmed = [{"image": each.get("image", ""), "resources": each.get("resources") or {}} for each in containers]
    status = item.get("status") or {}
    return {
        "metadata": metadata,
        "spec": {**spec, "containers": trimmed},
        "status": redact(status) if redact else status,
    }


def _last_lines(cluster: Cluster, pods: Sequence[Object], ranks: int) -> dict[str, Any]:
    started = [pod for pod in pods if has_started(pod)]

    def read_last_line(pod: Object) -> dict[str, Any] | None:
        blocks = cluster.log(pod["metadata"]["name"], follow=False, tailLines=20)
        return last_line(blocks, index_of(pod) * ranks)

    found = {}
    for pod, line in fan_out(started, read_last_line, _FANOUT):
        if line and not isinstance(line, Exception):  # an unreadable log must not hide the pod's status
            found[pod["metadata"]["name"]] = line
    return found


def _warnings(cluster: Cluster, job: Object | None, pods: Sequence[Object]) -> dict[str, str]:
    """Return the newest warning event of each pod that does not run yet, and of the job if it has no pods."""
    waiting = [pod["metadata"]["name"] for pod in pods if not has_started(pod)][:_MAX_WARNING_QUERIES]
    if job and not pods:
        waiting.append(job["metadata"]["name"])

    def newest_warning(name: str) -> str:
        events = cluster.list("Event", fields=f"involvedObject.name={name},type=Warning")
        events = [event for event in events if event.get("reason") not in ("BackOff", "FailedScheduling")]
        newest = max(events, key=event_time, default={})
        return " ".join(str(newest.get("message") or "").split())[:300].rstrip(".")

    found = {}
    for name, warning in fan_out(waiting, newest_warning, _FANOUT):
        if isinstance(warning, ClusterError) and warning.status != 403:
            raise warning
        if warning and not isinstance(warning, Exception):
            found[name] = warning
    return found


def event_time(event: Object) -> float:
    """Return when an event happened last.

    Parameters
    ----------
    event : Mapping
        The event.

    Returns
    -------
    float
        In seconds since the epoch; 0 if it has no time.
    """
    stamps = (event.get("lastTimestamp"), event.get("eventTime"), event["metadata"].get("creationTimestamp"))
    return next((found for stamp in stamps if (found := parse_time(stamp)) is not None), 0.0)

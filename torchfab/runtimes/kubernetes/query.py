"""Ask the cluster for all that it holds of a job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torchfab.launchers.manifest.objects import ID_LABEL
from torchfab.records import Record
from torchfab.runtimes.kubernetes import archive, redaction
from torchfab.runtimes.kubernetes.client import Cluster, ClusterError
from torchfab.runtimes.kubernetes.log_lines import last_line
from torchfab.runtimes.kubernetes.redaction import ANNOTATION, Hide
from torchfab.runtimes.kubernetes.status import Object, Seen, has_started, index_of, seconds
from torchfab.transport.fanout import fan_out

_MOST_ASKED = 16  # pods whose warnings are asked for: the others wait for the same
_FANOUT = 32


def selector(record: Record) -> str:
    """Return the labels that all of the job's pods have."""
    return f"{ID_LABEL}={record.details['id']}"


def look(cluster: Cluster | None, record: Record, with_lines: bool) -> tuple[Seen, float | None]:
    """Return what the cluster holds of a job; of one that was stopped, what it held then, and when that was.

    Parameters
    ----------
    cluster : Cluster, optional
        None where it need not be asked: the job was stopped, with proof.
    """
    before = archive.was_kept(record)
    if cluster is None:
        assert before is not None
        return before
    seen = see(cluster, record, with_lines)
    return before if before and seen.job is None and not seen.pods else (seen, None)


def see(cluster: Cluster, record: Record, with_lines: bool) -> Seen:
    """Return what the cluster holds of a job.

    Parameters
    ----------
    with_lines : bool
        Whether to ask for the last line of each pod's log.

    Raises
    ------
    ClusterError
        The cluster cannot be reached, or refuses.
    """
    told = record.details
    job = cluster.get(told["kind"], told["name"])
    if job and (job["metadata"].get("labels") or {}).get(ID_LABEL) != told["id"]:
        job = None  # another launch has taken the name
    pods = cluster.list("Pod", selector(record))
    cluster.hide = redaction.hider(pods, record.mask_key) or cluster.hide
    pods = [_lean(pod, cluster.hide) for pod in pods]
    lines = _last_lines(cluster, pods, told["ranks_per_node"]) if with_lines else {}
    return Seen(job and _lean(job, cluster.hide), pods, _warnings(cluster, job, pods), lines, time.time())


def _lean(item: Object, hide: Hide | None) -> dict[str, Any]:
    """Return an object without what nobody asks for, the words of its container, and without the job's secrets."""
    metadata = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
    notes = metadata.get("annotations") or {}
    metadata["annotations"] = {key: value for key, value in notes.items() if key != ANNOTATION}
    spec = {key: item.get("spec", {}).get(key) for key in ("nodeName", "suspend")}
    containers = item.get("spec", {}).get("containers") or []
    lean = [{"image": each.get("image", ""), "resources": each.get("resources") or {}} for each in containers]
    status = item.get("status") or {}
    return {
        "metadata": metadata,
        "spec": {**spec, "containers": lean},
        "status": hide(status) if hide else status,
    }


def _last_lines(cluster: Cluster, pods: Sequence[Object], ranks: int) -> dict[str, Any]:
    started = [pod for pod in pods if has_started(pod)]

    def act(pod: Object) -> dict[str, Any] | None:
        blocks = cluster.log(pod["metadata"]["name"], follow=False, tailLines=20)
        return last_line(blocks, index_of(pod) * ranks)

    found = {}
    for pod, line in fan_out(started, act, _FANOUT):
        if line and not isinstance(line, Exception):  # a log that cannot be read is no reason to say nothing
            found[pod["metadata"]["name"]] = line
    return found


def _warnings(cluster: Cluster, job: Object | None, pods: Sequence[Object]) -> dict[str, str]:
    """Return the newest warning about each pod that does not run yet, and about the job."""
    waiting = [pod["metadata"]["name"] for pod in pods if not has_started(pod)][:_MOST_ASKED]
    if job and not pods:
        waiting.append(job["metadata"]["name"])

    def act(name: str) -> str:
        events = cluster.list("Event", fields=f"involvedObject.name={name},type=Warning")
        events = [event for event in events if event.get("reason") not in ("BackOff", "FailedScheduling")]
        newest = max(events, key=_when, default={})
        return " ".join(str(newest.get("message") or "").split())[:300].rstrip(".")

    found = {}
    for name, words in fan_out(waiting, act, _FANOUT):
        if isinstance(words, ClusterError) and words.status != 403:
            raise words
        if words and not isinstance(words, Exception):
            found[name] = words
    return found


def _when(event: Object) -> float:
    stamps = (event.get("lastTimestamp"), event.get("eventTime"), event["metadata"].get("creationTimestamp"))
    return next((found for stamp in stamps if (found := seconds(stamp)) is not None), 0.0)

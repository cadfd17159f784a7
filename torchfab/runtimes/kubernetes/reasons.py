"""Why a pod does not run, or failed, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Object = Mapping[str, Any]
_DISRUPTIONS = {
    "PreemptionByScheduler": "preempted by a pod of higher priority",
    "EvictionByEvictionAPI": "evicted, most likely because its machine is drained",
    "DeletionByTaintManager": "evicted because of its machine's state",
    "DeletionByPodGC": "removed, as its machine is gone",
    "TerminationByKubelet": "ended by its machine",
}


def of_failed(pod: Object, ended: Mapping[str, Any]) -> str:
    """Return why a pod failed, where it was not its own doing; else nothing."""
    status = pod["status"]
    if status.get("reason") == "Evicted":
        return f"evicted: {_sentence(status.get('message', ''))}"
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            words = _DISRUPTIONS.get(condition.get("reason", ""), condition.get("reason", "disrupted"))
            return f"{words}: {_sentence(condition.get('message', ''))}".rstrip(": ")
    if ended.get("reason") == "OOMKilled":
        limit = pod["spec"]["containers"][0].get("resources", {}).get("limits", {}).get("memory")
        return "OOMKilled: it wanted more memory than " + (f"its limit of {limit}" if limit else "its machine has")
    if status.get("reason"):
        return f"{status['reason']}: {_sentence(status.get('message', ''))}".rstrip(": ")
    if ended.get("reason") in ("ContainerCannotRun", "StartError"):
        return f"the container cannot start: {_sentence(ended.get('message', ''))}"
    return ""


def sign_of(pod: Object, ended: Mapping[str, Any]) -> str:
    """Return the cluster's own name for what ended a pod, where it was not its own doing; else nothing."""
    status = pod["status"]
    if status.get("reason") == "Evicted":
        return "Evicted"
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return str(condition.get("reason") or "Disrupted")
    if ended.get("reason") in ("OOMKilled", "ContainerCannotRun", "StartError"):
        return str(ended["reason"])
    return str(status.get("reason") or "")


def of_waiting(pod: Object, waiting: Mapping[str, Any], warning: str) -> tuple[str, str]:
    """Return the state of a pod that does not run yet, and why in words.

    Parameters
    ----------
    waiting : Mapping
        What its container waits for, as the cluster says.
    warning : str
        The newest event of that kind about it.
    """
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            if condition.get("reason") == "SchedulingGated":
                return "pending", "held back by a scheduling gate"
            return "pending", f"cannot be scheduled: {_unschedulable(condition.get('message', ''))}"
    if not pod["spec"].get("nodeName"):
        return "pending", "not scheduled yet"
    reason, image = waiting.get("reason", ""), pod["spec"]["containers"][0]["image"]
    message = _sentence(waiting.get("message", "")) or warning
    if "Image" in reason:
        more = f" ({warning})" if warning and reason == "ImagePullBackOff" and warning not in message else ""
        return "pending", f"the image {image} cannot be pulled: {message or reason}{more}"
    if reason.endswith("Error"):
        return "pending", f"the container cannot be made: {message or reason}"
    return "starting", f"its container is being made{f': {warning}' if warning else ''}"


def last_of(message: str) -> str:
    """Return the last line of a log's end, which most often says what went wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return _sentence(lines[-1]) if lines else ""


def _unschedulable(message: str) -> str:
    """Return what is missing (`0/3 nodes are available: 3 Insufficient …`), without the words on preemption."""
    return _sentence(message.partition(" preemption:")[0]) or "no machine is free"


def _sentence(text: str) -> str:
    return " ".join(text.split()).rstrip(".")[:300]

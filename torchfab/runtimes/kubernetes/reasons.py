"""Describe why a pod is not running, or why it failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchfab.core.status import State

Object = Mapping[str, Any]
DISRUPTIONS = {
    "PreemptionByScheduler": "preempted by a pod of higher priority",
    "EvictionByEvictionAPI": "evicted, most likely because its machine is drained",
    "DeletionByTaintManager": "evicted because of its machine's state",
    "DeletionByPodGC": "removed because its machine no longer exists",
    "TerminationByKubelet": "ended by its machine",
}


def failure_reason(pod: Object, ended: Mapping[str, Any]) -> str:
    """Describe why a pod failed, if the cluster or its machine caused it.

    Parameters
    ----------
    pod : Mapping
        The pod.
    ended : Mapping
        The `terminated` state of its container; empty if it has none.

    Returns
    -------
    str
        The description; empty if the program itself failed.
    """
    status = pod["status"]
    if status.get("reason") == "Evicted":
        return f"evicted: {_sentence(status.get('message', ''))}"
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            disruption = DISRUPTIONS.get(condition.get("reason", ""), condition.get("reason", "disrupted"))
            return f"{disruption}: {_sentence(condition.get('message', ''))}".rstrip(": ")
    if ended.get("reason") == "OOMKilled":
        limit = pod["spec"]["containers"][0].get("resources", {}).get("limits", {}).get("memory")
        return "OOMKilled: it needed more memory than " + (f"its limit of {limit}" if limit else "its machine has")
    if status.get("reason"):
        return f"{status['reason']}: {_sentence(status.get('message', ''))}".rstrip(": ")
    if ended.get("reason") in ("ContainerCannotRun", "StartError"):
        return f"the container cannot start: {_sentence(ended.get('message', ''))}"
    return ""


def reason_name(pod: Object, ended: Mapping[str, Any]) -> str:
    """Return the cluster's name for the reason of a pod's end, such as `OOMKilled` or `Evicted`.

    Parameters
    ----------
    pod : Mapping
        The pod.
    ended : Mapping
        The `terminated` state of its container; empty if it has none.

    Returns
    -------
    str
        The name; empty if the program itself failed.
    """
    status = pod["status"]
    if status.get("reason") == "Evicted":
        return "Evicted"
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return str(condition.get("reason") or "Disrupted")
    if ended.get("reason") in ("OOMKilled", "ContainerCannotRun", "StartError"):
        return str(ended["reason"])
    return str(status.get("reason") or "")


def waiting_state(pod: Object, waiting: Mapping[str, Any], warning: str) -> tuple[State, str]:
    """Return the state of a pod that does not run yet, with the reason.

    Parameters
    ----------
    pod : Mapping
        The pod.
    waiting : Mapping
        The `waiting` state of its container; empty if it has none.
    warning : str
        The newest event of type Warning about it.

    Returns
    -------
    tuple of str
        `pending` or `starting`, and the reason.
    """
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            if condition.get("reason") == "SchedulingGated":
                return State.PENDING, "held back by a scheduling gate"
            return State.PENDING, f"cannot be scheduled: {_scheduling_problem(condition.get('message', ''))}"
    if not pod["spec"].get("nodeName"):
        return State.PENDING, "not scheduled yet"
    reason, image = waiting.get("reason", ""), pod["spec"]["containers"][0]["image"]
    message = _sentence(waiting.get("message", "")) or warning
    if "Image" in reason:
        detail = f" ({warning})" if warning and reason == "ImagePullBackOff" and warning not in message else ""
        return State.PENDING, f"the image {image} cannot be pulled: {message or reason}{detail}"
    if reason.endswith("Error"):
        return State.PENDING, f"the container cannot be created: {message or reason}"
    return State.STARTING, f"its container is being created{f': {warning}' if warning else ''}"


def last_line(message: str) -> str:
    """Return the last line of a termination message, which usually names the error.

    Parameters
    ----------
    message : str
        The end of the container's log.

    Returns
    -------
    str
        The line; empty if all lines are blank.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return _sentence(lines[-1]) if lines else ""


def _scheduling_problem(message: str) -> str:
    """Return the scheduler's message (`0/3 nodes are available: 3 Insufficient …`), without that about preemption."""
    return _sentence(message.partition(" preemption:")[0]) or "no machine is free"


def _sentence(text: str) -> str:
    return " ".join(text.split()).rstrip(".")[:300]

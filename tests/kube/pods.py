"""Pods made by hand: a test says how they are."""

from __future__ import annotations

import time
from typing import Any

from tests.kube.api import API, Object, stamp

INDEX = "batch.kubernetes.io/job-completion-index"


def pods_of(api: API, job: str, namespace: str = "default", suffix: str = "aaaaa") -> list[str]:
    """Make the pods of a Job, as its controller does; return their names."""
    owner = api.get("jobs", job, namespace)
    template = owner["spec"]["template"]
    names = []
    for index in range(owner["spec"]["completions"]):
        name = f"{job}-{index}-{suffix}"
        meta = {
            "name": name,
            "labels": {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": job},
            "annotations": {**template["metadata"].get("annotations", {}), INDEX: str(index)},
            "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": owner["metadata"]["uid"]}
            ],
        }
        spec = {**template["spec"], "hostname": f"{job}-{index}"}
        api.put("pods", {"metadata": meta, "spec": spec, "status": {"phase": "Pending"}}, namespace)
        names.append(name)
    return names


def set_status(api: API, pod: str, status: Object, namespace: str = "default", **spec: Any) -> None:
    """Change how a pod is."""
    with api.moved:
        item = api.get("pods", pod, namespace)
        item["status"] = status
        item["spec"] = {**item["spec"], **spec}
        api.put("pods", item, namespace)


def unschedulable(message: str) -> Object:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def waiting(reason: str, message: str = "") -> Object:
    return {"phase": "Pending", **_container({"waiting": {"reason": reason, "message": message}})}


def running(since: float | None = None) -> Object:
    state = {"running": {"startedAt": stamp(since or time.time())}}
    return {"phase": "Running", **_container(state)}


def ended(code: int, message: str = "", reason: str = "", **status: Any) -> Object:
    now = time.time()
    state = {"exitCode": code, "reason": reason or ("Error" if code else "Completed"), "message": message,
             "startedAt": stamp(now - 60), "finishedAt": stamp(now)}  # fmt: skip
    phase = "Failed" if code else "Succeeded"
    return {"phase": phase, **_container({"terminated": state}), **status}


def _container(state: Object) -> Object:
    made = {"name": "trainer", "image": "x:1", "imageID": "", "ready": "running" in state, "restartCount": 0}
    return {"containerStatuses": [{**made, "state": state}]}


def condition(api: API, job: str, kind: str, reason: str = "", message: str = "", namespace: str = "default") -> None:
    """Set a condition of a Job."""
    with api.moved:
        item = api.get("jobs", job, namespace)
        item["status"] = {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": message}]}
        api.put("jobs", item, namespace)

"""The objects of a job on a cluster: a headless Service and an Indexed Job, or a JobSet, which brings its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchfab.core.specs import Job

CONTAINER = "trainer"
INDEX = "JOB_COMPLETION_INDEX"
ID_LABEL = "torchfab/id"
JOB_ANNOTATION = "torchfab/job"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# A wrong command line, a program that cannot be run, one that is not there: the next try ends alike.
HOPELESS = [2, 126, 127]


@dataclass(frozen=True)
class Shape:
    """What the objects of a job are called, and how many pods there are.

    Parameters
    ----------
    name : str
        Of Job, Service and JobSet.
    nodes : int
        Number of pods.
    middle : str
        What stands between the name and the pod's index in its host name: `-`; with a JobSet `-node-0-`.
    token : str
        What tells the job from all others: the suffix of its id.
    port : int
        Of the rendezvous.
    """

    name: str
    nodes: int
    middle: str
    token: str
    port: int

    @property
    def kind(self) -> str:
        """Job or JobSet."""
        return "Job" if self.middle == "-" else "JobSet"

    @property
    def secret(self) -> str:
        """Name of the Secret that holds the environment's secret values."""
        return f"{self.name}-env"

    def pod(self, index: int) -> str:
        """Return a pod's host name."""
        return f"{self.name}{self.middle}{index}"

    @property
    def master(self) -> str:
        """The first pod's name in the headless Service."""
        return f"{self.pod(0)}.{self.name}"


def objects_of(job: Job, shape: Shape, container: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the objects, in the order in which they are created.

    Parameters
    ----------
    container : Mapping
        Its `command`, `args` and `env`.
    """
    if shape.kind == "JobSet":
        return [_jobset(job, shape, container)]
    top = {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(job, shape, queued=True)}
    return [_service(job, shape), {**top, "spec": {**_suspended(job), **_job_spec(job, shape, container)}}]


def metadata_of(name: str, token: str, job_name: str, namespace: str = "") -> dict[str, Any]:
    """Return the metadata of one of a job's objects."""
    place = {"namespace": namespace} if namespace else {}
    return {
        "name": name,
        **place,
        "labels": {**_labels(token), "app.kubernetes.io/name": name},
        "annotations": {JOB_ANNOTATION: job_name},
    }


def _labels(token: str) -> dict[str, str]:
    return {"app.kubernetes.io/managed-by": "torchfab", ID_LABEL: token}


def _metadata(job: Job, shape: Shape, queued: bool) -> dict[str, Any]:
    made = metadata_of(shape.name, shape.token, job.name, job.options["namespace"])
    if queued and job.options["queue"]:
        made["labels"][QUEUE_LABEL] = job.options["queue"]
    return made


def _suspended(job: Job) -> dict[str, Any]:
    return {"suspend": True} if job.options["queue"] else {}  # until Kueue admits it


def _service(job: Job, shape: Shape) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(job, shape, queued=False),
        "spec": {
            "clusterIP": "None",  # headless: a name for every pod
            "publishNotReadyAddresses": True,  # the others look for the first pod before it is ready
            "selector": {ID_LABEL: shape.token},
            "ports": [{"name": "rendezvous", "port": shape.port, "targetPort": shape.port, "protocol": "TCP"}],
        },
    }


def _jobset(job: Job, shape: Shape, container: Mapping[str, Any]) -> dict[str, Any]:
    # The JobSet restarts all pods together; its Jobs must not restart any on their own.
    template = {"spec": {**_job_spec(job, shape, container), "backoffLimit": 0}}
    template["spec"].pop("podFailurePolicy", None)
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(job, shape, queued=True),
        "spec": {
            **_suspended(job),
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": shape.name},
            "failurePolicy": {"maxRestarts": job.options["max_restarts"]},
            "replicatedJobs": [{"name": "node", "replicas": 1, "template": template}],
        },
    }


def _job_spec(job: Job, shape: Shape, container: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "completionMode": "Indexed",
        "completions": shape.nodes,
        "parallelism": shape.nodes,
        **_failure_policy(job.options["max_restarts"], shape.nodes),
        "template": {
            "metadata": {"labels": {**_labels(shape.token), "app.kubernetes.io/name": shape.name}},
            "spec": _pod_spec(job, shape, container),
        },
    }


def _failure_policy(max_restarts: int, nodes: int) -> dict[str, Any]:
    """Return what happens after a pod has failed: without restarts the first failure ends the job."""
    if not max_restarts:
        return {"backoffLimit": 0}
    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    codes = {"containerName": CONTAINER, "operator": "In", "values": HOPELESS}
    return {
        "backoffLimit": max_restarts * nodes,  # it counts pods, and all of them fail when one does
        "podReplacementPolicy": "Failed",  # never two pods of one index at a time
        "podFailurePolicy": {"rules": [disrupted, {"action": "FailJob", "onExitCodes": codes}]},
    }


def _pod_spec(job: Job, shape: Shape, container: Mapping[str, Any]) -> dict[str, Any]:
    own = job.options
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "subdomain": shape.name,
        "terminationGracePeriodSeconds": math.ceil(job.grace_s),
        "enableServiceLinks": False,
        "automountServiceAccountToken": bool(own["service_account"]),
        "serviceAccountName": own["service_account"],
        "priorityClassName": own["priority_class"],
        "imagePullSecrets": [{"name": name} for name in own["pull_secrets"]],
        "nodeSelector": own["node_selector"],
        "tolerations": own["tolerations"],
        "affinity": _apart(shape) if shape.nodes > 1 else {},
        "securityContext": _pod_security(own["user"]),
        "containers": [_container(job, shape, container)],
        "volumes": [volume for volume, _ in _volumes(job)],
    }
    return {key: value for key, value in spec.items() if value not in ("", [], {})}


def _apart(shape: Shape) -> dict[str, Any]:
    """Return the wish to have each pod on a machine of its own, where the machines allow it."""
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {ID_LABEL: shape.token}}}
    wish = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}
    return {"podAntiAffinity": wish}


def _pod_security(user: int | None) -> dict[str, Any]:
    profile = {"seccompProfile": {"type": "RuntimeDefault"}}
    if user is None:
        return profile
    ids = {"runAsUser": user, "runAsGroup": user, "fsGroup": user}  # the group that volumes are writable for
    return {"runAsNonRoot": user != 0, **ids, **profile}


def _container(job: Job, shape: Shape, container: Mapping[str, Any]) -> dict[str, Any]:
    made = {
        "name": CONTAINER,
        "image": job.options["image"],
        "workingDir": job.workdir,
        **container,
        "ports": [{"name": "rendezvous", "containerPort": shape.port, "protocol": "TCP"}],
        "resources": _resources(job.options),
        # What the program leaves there; where it left nothing, the end of the log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [mount for _, mount in _volumes(job)],
    }
    return {key: value for key, value in made.items() if value != {}}


def _resources(own: Mapping[str, Any]) -> dict[str, Any]:
    # No limit of cores: it would stop processes that wait for each other in turns.
    memory = {"memory": own["memory"]} if own["memory"] else {}
    gpus = {own["gpu_resource"]: str(own["gpus"])} if own["gpus"] else {}
    requests = {**({"cpu": own["cpus"]} if own["cpus"] else {}), **memory}
    limits = {**memory, **gpus}
    return {**({"requests": requests} if requests else {}), **({"limits": limits} if limits else {})}


def _volumes(job: Job) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each volume with its mount; /dev/shm first, of which containers get 64 MiB otherwise."""
    size = {"sizeLimit": job.options["shm"]} if job.options["shm"] else {}
    found = [
        ({"name": "shm", "emptyDir": {"medium": "Memory", **size}}, {"name": "shm", "mountPath": "/dev/shm"}),
    ]
    for index, each in enumerate(job.options["volumes"]):
        volume = {"name": f"volume-{index}", "persistentVolumeClaim": {"claimName": each["claim"]}}
        found.append((volume, {"name": f"volume-{index}", "mountPath": each["path"]}))
    return found

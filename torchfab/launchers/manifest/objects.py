"""The objects of a job on a cluster: a headless Service and an Indexed Job, or a JobSet, which creates both itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Job

CONTAINER = "trainer"
INDEX = "JOB_COMPLETION_INDEX"
ID_LABEL = "torchfab/id"
JOB_ANNOTATION = "torchfab/job"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# Exit codes that a retry cannot fix: a wrong command line, a program that is not executable or does not exist.
HOPELESS = [2, 126, 127]


@dataclass(frozen=True)
class Shape:
    """The names of a job's objects and the number of its pods.

    Parameters
    ----------
    name : str
        Name of the Job, the Service and the JobSet.
    nodes : int
        Number of pods.
    middle : str
        Text between the name and the pod's index in its host name: `-`; with a JobSet `-node-0-`.
    token : str
        Identifies the job: the suffix of its id.
    port : int
        Port of the rendezvous.
    """

    name: str
    nodes: int
    middle: str
    token: str
    port: int

    @property
    def kind(self) -> str:
        """Kind of the top object.

        Returns
        -------
        str
            Job or JobSet.
        """
        return "Job" if self.middle == "-" else "JobSet"

    @property
    def secret(self) -> str:
        """Name of the Secret that holds the environment's secret values.

        Returns
        -------
        str
        """
        return f"{self.name}-env"

    def pod(self, index: int) -> str:
        """Return the host name of a pod.

        Parameters
        ----------
        index : int
            Its index.

        Returns
        -------
        str
        """
        return f"{self.name}{self.middle}{index}"

    @property
    def master(self) -> str:
        """Name of the first pod in the headless Service.

        Returns
        -------
        str
        """
        return f"{self.pod(0)}.{self.name}"


def build_objects(job: Job, shape: Shape, container: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the objects of a job, in the order of their creation.

    Parameters
    ----------
    job : Job
        The job.
    shape : Shape
        Names and number of its pods.
    container : Mapping
        `command`, `args` and `env` of the container.

    Returns
    -------
    list of dict
    """
    if shape.kind == "JobSet":
        return [_jobset(job, shape, container)]
    top = {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(job, shape, queued=True)}
    return [_service(job, shape), {**top, "spec": {**_suspended(job), **_job_spec(job, shape, container)}}]


def build_metadata(name: str, token: str, job_name: str, namespace: str = "") -> dict[str, Any]:
    """Return the metadata of an object of a job.

    Parameters
    ----------
    name : str
        Name of the object.
    token : str
        Identifies the job.
    job_name : str
        Name of the job.
    namespace : str
        Default: that of the context.

    Returns
    -------
    dict
    """
    namespace_entry = {"namespace": namespace} if namespace else {}
    return {
        "name": name,
        **namespace_entry,
        "labels": {**_labels(token), "app.kubernetes.io/name": name},
        "annotations": {JOB_ANNOTATION: job_name},
    }


def _labels(token: str) -> dict[str, str]:
    return {"app.kubernetes.io/managed-by": "torchfab", ID_LABEL: token}


def _metadata(job: Job, shape: Shape, queued: bool) -> dict[str, Any]:
    made = build_metadata(shape.name, shape.token, job.name, job.options["namespace"])
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
            "publishNotReadyAddresses": True,  # the other pods resolve the first one before it is ready
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
    """Return the reaction to a failed pod: without restarts the first failure ends the job."""
    if not max_restarts:
        return {"backoffLimit": 0}
    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    codes = {"containerName": CONTAINER, "operator": "In", "values": HOPELESS}
    return {
        "backoffLimit": max_restarts * nodes,  # the limit counts pods, and when one fails, all fail
        "podReplacementPolicy": "Failed",  # never two pods with the same index at once
        "podFailurePolicy": {"rules": [disrupted, {"action": "FailJob", "onExitCodes": codes}]},
    }


def _pod_spec(job: Job, shape: Shape, container: Mapping[str, Any]) -> dict[str, Any]:
    options = job.options
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "subdomain": shape.name,
        "terminationGracePeriodSeconds": math.ceil(job.grace_s),
        "enableServiceLinks": False,
        "automountServiceAccountToken": bool(options["service_account"]),
        "serviceAccountName": options["service_account"],
        "priorityClassName": options["priority_class"],
        "imagePullSecrets": [{"name": name} for name in options["pull_secrets"]],
        "nodeSelector": options["node_selector"],
        "tolerations": options["tolerations"],
        "affinity": _spread_over_machines(shape) if shape.nodes > 1 else {},
        "securityContext": _pod_security(options["user"]),
        "containers": [_container(job, shape, container)],
        "volumes": [volume for volume, _ in _volumes(job)],
    }
    return {key: value for key, value in spec.items() if value not in ("", [], {})}


def _spread_over_machines(shape: Shape) -> dict[str, Any]:
    """Return the preference for one pod per machine, if there are enough machines."""
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {ID_LABEL: shape.token}}}
    preference = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}
    return {"podAntiAffinity": preference}


def _pod_security(user: int | None) -> dict[str, Any]:
    profile = {"seccompProfile": {"type": "RuntimeDefault"}}
    if user is None:
        return profile
    ids = {"runAsUser": user, "runAsGroup": user, "fsGroup": user}  # fsGroup may write to volumes
    return {"runAsNonRoot": user != 0, **ids, **profile}


def _container(job: Job, shape: Shape, container: Mapping[str, Any]) -> dict[str, Any]:
    made = {
        "name": CONTAINER,
        "image": job.options["image"],
        "workingDir": job.workdir,
        **container,
        "ports": [{"name": "rendezvous", "containerPort": shape.port, "protocol": "TCP"}],
        "resources": _resources(job.options),
        # The message that the entry point writes; without one, the end of the log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [mount for _, mount in _volumes(job)],
    }
    return {key: value for key, value in made.items() if value != {}}


def _resources(options: Mapping[str, Any]) -> dict[str, Any]:
    # No limit of cores: throttling would stall processes that wait for each other.
    memory = {"memory": options["memory"]} if options["memory"] else {}
    gpus = {options["gpu_resource"]: str(options["gpus"])} if options["gpus"] else {}
    requests = {**({"cpu": options["cpus"]} if options["cpus"] else {}), **memory}
    limits = {**memory, **gpus}
    return {**({"requests": requests} if requests else {}), **({"limits": limits} if limits else {})}


def _volumes(job: Job) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each volume with its mount; /dev/shm first, which has only 64 MiB by default."""
    size = {"sizeLimit": job.options["shm"]} if job.options["shm"] else {}
    found = [
        ({"name": "shm", "emptyDir": {"medium": "Memory", **size}}, {"name": "shm", "mountPath": "/dev/shm"}),
    ]
    for index, each in enumerate(job.options["volumes"]):
        volume = {"name": f"volume-{index}", "persistentVolumeClaim": {"claimName": each["claim"]}}
        found.append((volume, {"name": f"volume-{index}", "mountPath": each["path"]}))
    return found

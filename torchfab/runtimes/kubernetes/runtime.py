"""The Kubernetes runtime: a job is a Job (or a JobSet) with a Service and a Secret, and its nodes are pods.

torchfab runs no process of its own for a job: the cluster runs it, and torchfab queries the cluster's API.
"""

from __future__ import annotations

import math
import shlex
import signal as signals
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torchfab.core.console import write_err
from torchfab.core.errors import Interrupted, TorchfabError, UsageError
from torchfab.core.events import EventStream
from torchfab.core.specs import Node, Submission
from torchfab.core.status import JobStatus, NodeStatus, State, Verdict
from torchfab.launchers.manifest.objects import CONTAINER, ID_LABEL, build_metadata
from torchfab.launchers.manifest.yaml_text import from_yaml
from torchfab.records import Record
from torchfab.runtimes import CheckpointWatch, SignalReport, StopReport
from torchfab.runtimes.kubernetes import archive, redaction
from torchfab.runtimes.kubernetes.client import Cluster, ClusterError, ClusterScope, detect_scope
from torchfab.runtimes.kubernetes.evidence import collect
from torchfab.runtimes.kubernetes.log_stream import Follower
from torchfab.runtimes.kubernetes.query import load_snapshot, query_snapshot
from torchfab.runtimes.kubernetes.status import JobSnapshot, Object, index_of, job_status
from torchfab.stacks.model import StackDump
from torchfab.why.evidence import Evidence

if TYPE_CHECKING:
    from pathlib import Path

    from torchfab.profiling.model import JobProfile

NAME = "kubernetes"
_POLL_S = 0.2


# ---- submitting


def submit(record: Record, submission: Submission) -> dict[str, Any]:
    """Create the job's objects; if one fails, delete those created before it.

    Parameters
    ----------
    record : Record
        The job.
    submission : Submission
        The manifest and its details.

    Returns
    -------
    dict
        Details for the record: kubeconfig, context, namespace and API server.

    Raises
    ------
    TorchfabError
        The cluster cannot be reached, or rejected an object; no object remains unless the error says so.
    """
    details = submission.details
    cluster = Cluster(detect_scope(details["context"], details["namespace"]), record.settings.answer_timeout_s)
    description = f"{details['kind']} {details['name']} in namespace {cluster.scope.namespace}"
    location = {**vars(cluster.scope), "server": cluster.server, "known_as": description}
    _check_claims(cluster, details["claims"])
    try:
        for item in _objects(submission, cluster.scope):
            _create(cluster, item)
    except BaseException as error:
        raise _roll_back(cluster, submission, error) from None
    return location


def _objects(submission: Submission, scope: ClusterScope) -> list[Mapping[str, Any]]:
    """Return the objects to create: the manifest that the dry run prints, and the Secret, which it does not print."""
    details, job = submission.details, submission.job
    found = [redaction.with_digests(item, job.secrets, job.mask_key) for item in from_yaml(submission.text)]
    if job.secrets:
        metadata = build_metadata(details["secret"], details["id"], job.name, scope.namespace)
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque"}
        found.insert(0, {**secret, "stringData": dict(job.secrets)})
    return found


def _check_claims(cluster: Cluster, claims: Sequence[str]) -> None:
    for name in claims:
        try:
            there = cluster.get("PersistentVolumeClaim", name)
        except ClusterError as error:
            if error.status != 403:
                raise
            continue  # a user without permission to read claims may still mount them
        if there is None:
            where = f"namespace {cluster.scope.namespace}"
            raise UsageError(f"--pvc: there is no PersistentVolumeClaim {name} in {where}", "kubectl get pvc")


def _create(cluster: Cluster, item: Mapping[str, Any]) -> None:
    kind, name = item["kind"], item["metadata"]["name"]
    try:
        cluster.create(item)
    except ClusterError as error:
        if error.status != 409:
            raise
        where = f"in namespace {cluster.scope.namespace}"
        fix = f"choose another --name, or delete that one: kubectl -n {cluster.scope.namespace} delete {kind} {name}"
        raise ClusterError(f"there is a {kind} {name} {where} already, of another launch", fix, 409) from None


def _roll_back(cluster: Cluster, submission: Submission, error: BaseException) -> BaseException:
    """Delete the objects created so far; return the error to raise."""
    details = submission.details
    try:
        left = _delete_all(cluster, details, 1.0, time.monotonic() + cluster.timeout_s)
    except TorchfabError as second:
        left = [f"what there is of {details['kind']} {details['name']} ({second.message})"]
    if isinstance(error, KeyboardInterrupt):
        error = Interrupted("interrupted; " + (f"left behind: {', '.join(left)}" if left else "nothing was left"))
    elif isinstance(error, TorchfabError) and left:
        error.message += f"; left behind: {', '.join(left)}"
        error.fix = f"when the cluster answers again: fab stop {submission.job.name}"
    if isinstance(error, TorchfabError) and left:
        error.uncertain_hosts = (cluster.server,)
    return error


# ---- status and evidence


def _cluster(record: Record) -> Cluster:
    """Return the cluster of the job; for a launch that was killed midway, the cluster that its flags select."""
    details = record.details
    if "server" not in details:
        return Cluster(detect_scope(details["context"], details["namespace"]), record.settings.answer_timeout_s)
    scope = ClusterScope(details["kubeconfig"], details["context"], details["namespace"])
    return Cluster(scope, record.settings.answer_timeout_s)


def _cluster_unless_gone(record: Record) -> Cluster | None:
    """Return the cluster of the job; None if the cluster is known to hold no object of the job any more."""
    return None if archive.is_gone(record) and archive.load(record) else _cluster(record)


def status(record: Record) -> JobStatus:
    """Query the status of the job from the cluster; for a stopped job, return its archived status.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    JobStatus
        `unreachable` if the cluster does not answer.
    """
    try:
        snapshot, stopped = load_snapshot(_cluster_unless_gone(record), record, with_lines=True)
    except TorchfabError as error:
        return _unreachable(record, error)
    return job_status(record.nodes, replace(snapshot, now=time.time()), record.details, stopped)


def evidence(record: Record) -> Evidence:
    """Collect evidence for `fab why` from the cluster, or from the archive of a stopped job.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    Evidence
        The cluster's reasons, and the last log lines of each rank.
    """
    try:
        cluster = _cluster_unless_gone(record)
        snapshot, stopped = load_snapshot(cluster, record, with_lines=True)
    except TorchfabError as error:
        return Evidence(record.name, record.created, _unreachable(record, error), ())
    job = job_status(record.nodes, replace(snapshot, now=time.time()), record.details, stopped)
    return collect(cluster, record, snapshot, job)


def _unreachable(record: Record, error: TorchfabError) -> JobStatus:
    nodes = tuple(NodeStatus(node, State.UNREACHABLE, error.message) for node in record.nodes)
    return JobStatus(nodes, len(nodes), Verdict(State.UNREACHABLE, reason=error.message))


def follow(record: Record, request: Mapping[str, Any], nodes: Sequence[Node] | None = None) -> EventStream:
    """Yield the log lines of the job's pods, and the job's status whenever it changes, until its end.

    Parameters
    ----------
    record : Record
        The job.
    request : Mapping
        `follow`, `lines`, `ranks`, `grep`: as `torchfab.remote.job.log_reader.Reader` takes them.
    nodes : sequence of Node, optional
        Follow these nodes only. Default: all.

    Returns
    -------
    iterator of Event
        Ends when the job has ended, or without `follow` when the existing lines are read.
    """
    yield from Follower(record, request, _cluster_unless_gone(record), nodes or record.nodes).events()


# ---- stop


def stop(record: Record, grace_s: float, nodes: Sequence[Node] | None = None) -> tuple[StopReport, ...]:
    """Archive the job's logs, delete its objects, and verify that they and all its pods are gone.

    Parameters
    ----------
    record : Record
        The job.
    grace_s : float
        Termination grace period of the pods, in seconds.
    nodes : sequence of Node, optional
        Delete only the pods of these nodes; the Job remains and nothing is archived. Default: all.

    Returns
    -------
    tuple of StopReport
        One for each node.
    """
    chosen = record.nodes if nodes is None else nodes
    started = time.monotonic()
    deadline = started + grace_s + record.settings.answer_timeout_s
    try:
        cluster = _cluster(record)
        snapshot = query_snapshot(cluster, record, with_lines=nodes is None)
        pods = [pod for pod in snapshot.pods if index_of(pod) in {node.rank for node in chosen}]
        if nodes is not None:
            left = _delete_pods(cluster, record.details, pods, grace_s, deadline)
        else:
            _archive(cluster, record, snapshot)
            left = _delete_all(cluster, record.details, grace_s, deadline)
    except TorchfabError as error:
        return tuple(StopReport(node, error=error) for node in chosen)
    if nodes is None and not left:
        archive.mark_gone(record)
    prefix = _deleted_kinds(record.details) if nodes is None else ""
    return tuple(_stop_report(node, pods, left, prefix, time.monotonic() - started) for node in chosen)


def _deleted_kinds(details: Mapping[str, Any]) -> str:
    kinds = [
        details["kind"],
        *(["Service"] if details["kind"] == "Job" else []),
        *(["Secret"] if details["secret"] else []),
    ]
    return f"{', '.join(kinds[:-1])} and {kinds[-1]} are gone, " if len(kinds) > 1 else f"{kinds[0]} is gone, "


def _stop_report(node: Node, pods: Sequence[Object], left: Sequence[str], prefix: str, seconds: float) -> StopReport:
    own = [f"Pod {pod['metadata']['name']}" for pod in pods if index_of(pod) == node.rank]
    # Objects that belong to no node, such as the Job, are reported with node 0.
    others = [each for each in left if node.rank == 0 and not each.startswith("Pod ")]
    mine = (*others, *(each for each in left if any(f"{each} ".startswith(f"{name} ") for name in own)))
    if mine:
        return StopReport(node, len(own), left=mine, seconds=seconds, summary=f"still there: {'; '.join(mine)}")
    summary = f"{prefix}its pod is gone, within {seconds:.1f} s" if own else f"{prefix}it had no pod"
    return StopReport(node, len(own), seconds=seconds, summary=summary, proof="kubernetes")


def _archive(cluster: Cluster, record: Record, snapshot: JobSnapshot) -> None:
    if snapshot.job is None and not snapshot.pods:
        return  # the objects were already deleted, by `fab stop` or another client
    for pod in snapshot.pods:
        try:
            archive.save_log(record, pod["metadata"]["name"], cluster.log(pod["metadata"]["name"], follow=False))
        except (ClusterError, OSError) as error:
            write_err(f"{pod['metadata']['name']}: its log could not be kept: {error}")
    archive.save(record, snapshot)


def _delete_all(cluster: Cluster, details: Mapping[str, Any], grace_s: float, deadline: float) -> list[str]:
    """Delete the job's objects and pods, and wait until they are gone; describe those that are left at the deadline.

    Only objects with the job's id are deleted: another job may have the same name.
    """
    named = ((details["kind"], details["name"]), ("Service", details["name"]), ("Secret", details["secret"]))
    mine = [(kind, name) for kind, name in named if name and _is_ours(cluster, kind, name, details["id"])]
    for kind, name in mine:
        cluster.delete(kind, name)
    requested: set[str] = set()
    while True:
        pods = cluster.list("Pod", f"{ID_LABEL}={details['id']}")
        _request_deletion(cluster, [pod for pod in pods if pod["metadata"]["uid"] not in requested], grace_s)
        requested |= {pod["metadata"]["uid"] for pod in pods}
        left = [f"{kind} {name}" for kind, name in mine if _is_ours(cluster, kind, name, details["id"])]
        left += [_describe_pod(pod) for pod in pods]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(_POLL_S)


def _delete_pods(
    cluster: Cluster, details: Mapping[str, Any], pods: Sequence[Object], grace_s: float, deadline: float
) -> list[str]:
    """Delete some of the job's pods, and wait until they are gone; describe those that are left at the deadline."""
    ids = {pod["metadata"]["uid"] for pod in pods}
    _request_deletion(cluster, pods, grace_s)
    while True:
        there = cluster.list("Pod", f"{ID_LABEL}={details['id']}")
        left = [_describe_pod(pod) for pod in there if pod["metadata"]["uid"] in ids]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(_POLL_S)


def _request_deletion(cluster: Cluster, pods: Sequence[Object], grace_s: float) -> None:
    # With a grace period of 0 s the cluster removes a pod at once, even if its machine has not ended it, so the pod's
    # absence would prove nothing.
    for pod in pods:
        cluster.delete("Pod", pod["metadata"]["name"], max(1, math.ceil(grace_s)), pod["metadata"]["uid"])


def _is_ours(cluster: Cluster, kind: str, name: str, token: str) -> bool:
    try:
        found = cluster.get(kind, name)
    except ClusterError as error:
        if kind == "Secret" and error.status == 403:
            return False  # a user without permission to read Secrets did not create one
        raise
    return found is not None and (found["metadata"].get("labels") or {}).get(ID_LABEL) == token


def _describe_pod(pod: Object) -> str:
    machine = pod["spec"].get("nodeName")
    return f"Pod {pod['metadata']['name']}" + (f" on {machine}, which may not answer" if machine else "")


def forget(record: Record) -> dict[str, TorchfabError]:
    """Delete the remaining objects of a job that has ended.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    dict of str to TorchfabError
        Errors by API server or object; empty if no object is left.
    """
    try:
        cluster = _cluster(record)
        left = _delete_all(cluster, record.details, 1.0, time.monotonic() + record.settings.answer_timeout_s)
    except TorchfabError as error:  # no answer, or no kubeconfig any more
        return {record.details.get("server", "the cluster"): error}
    return {each: TorchfabError("is still there") for each in left}


# ---- stacks


def stacks(record: Record, request: Mapping[str, Any]) -> StackDump:
    """Raise TorchfabError: pods contain no part of torchfab and rarely py-spy.

    Parameters
    ----------
    record : Record
        The job.
    request : Mapping
        Ignored.

    Returns
    -------
    Dump
        Never.

    Raises
    ------
    TorchfabError
        Always; it names the `kubectl exec` command that runs py-spy in a pod.
    """
    cluster = _cluster(record)
    pods = [pod["metadata"]["name"] for pod in cluster.list("Pod", f"{ID_LABEL}={record.details['id']}")]
    kubectl_exec = (*_kubectl(cluster.scope), "exec", *(pods[-1:] or ["POD"]), "--container", CONTAINER, "--")
    command = shlex.join((*kubectl_exec, "py-spy", "dump", "--pid", "1", "--subprocesses"))
    needs = "the image needs py-spy, and the container the capability SYS_PTRACE"
    raise TorchfabError("fab stacks does not support pods yet", f"pod by pod ({len(pods)}): {command} ({needs})")


# ---- profile


def profile(record: Record, ranks: Sequence[int] | None, seconds: float, folder: Path) -> JobProfile:
    """Raise TorchfabError: ranks that Kubernetes starts have no probe.

    Parameters
    ----------
    record : Record
        The job.
    ranks, seconds, folder
        Ignored.

    Returns
    -------
    JobProfile
        Never.

    Raises
    ------
    TorchfabError
        Always.
    """
    raise TorchfabError(
        f"job {record.name}: ranks that Kubernetes starts have no probe, which fab profile needs",
        "use torch.profiler in the script; or launch over a hosts file",
    )


# ---- signal

# Ranks are the children of process 1, which is torchrun.
_SIGNAL_CHILDREN = "import os; [os.kill(int(pid), {number}) for pid in open('/proc/1/task/1/children').read().split()]"


def signal(record: Record, name: str, ranks: Sequence[int] | None) -> tuple[SignalReport, ...]:
    """Raise TorchfabError: pods contain no part of torchfab.

    Parameters
    ----------
    record : Record
        The job.
    name : str
        Its name: `SIGUSR1`.
    ranks : sequence of int, optional
        Ignored.

    Returns
    -------
    tuple of SignalReport
        Never.

    Raises
    ------
    TorchfabError
        Always; it names the `kubectl exec` command that signals the ranks in a pod.
    """
    cluster = _cluster(record)
    pods = [pod["metadata"]["name"] for pod in cluster.list("Pod", f"{ID_LABEL}={record.details['id']}")]
    kubectl_exec = (*_kubectl(cluster.scope), "exec", *(pods[:1] or ["POD"]), "--container", CONTAINER, "--")
    program = _SIGNAL_CHILDREN.format(number=int(signals.Signals[name]))
    command = shlex.join((*kubectl_exec, "python", "-c", program))
    raise TorchfabError(f"fab cannot send {name} to the ranks in pods", f"pod by pod ({len(pods)}): {command}")


def watch_checkpoints(record: Record) -> CheckpointWatch:
    """Raise TorchfabError: the files of pods cannot be seen from here.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    CheckpointWatch
        Never.

    Raises
    ------
    TorchfabError
        Always.
    """
    raise TorchfabError("fab cannot see the files of pods", f"fab signal {record.name} USR1 says how to ask for a save")


# ---- attach


def machines(record: Record) -> list[tuple[Node, Mapping[str, Any] | None]]:
    """Raise UsageError: ssh does not reach pods.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    list of tuple
        Never.

    Raises
    ------
    UsageError
        Always.
    """
    pod = "POD"
    kubectl = "kubectl"
    try:
        cluster = _cluster(record)
        kubectl = shlex.join(_kubectl(cluster.scope))
        pods = query_snapshot(cluster, record, with_lines=False).pods_of(0)
        pod = pods[-1]["metadata"]["name"] if pods else pod
    except TorchfabError:  # the cluster does not answer: the commands are still valid
        pass
    raise UsageError(
        f"job {record.name} runs in pods, which ssh does not reach",
        f"files: {kubectl} cp --container {CONTAINER} {pod}:PATH ./NAME; "
        f"a port: {kubectl} port-forward {pod} 6006:6006; load: {kubectl} top pod; "
        "or name the machines with -H, if ssh reaches those",
    )


def attach_argv(record: Record, node: Node, window: str) -> tuple[str, ...]:
    """Return the `kubectl exec` command that opens a shell in a node's pod.

    Parameters
    ----------
    record : Record
        The job.
    node : Node
        The node.
    window : str
        Ignored: pods have no tmux windows.

    Returns
    -------
    tuple of str
        The command.

    Raises
    ------
    UsageError
        The node has no pod.
    """
    cluster = _cluster(record)
    pods = query_snapshot(cluster, record, with_lines=False).pods_of(node.rank)
    if not pods:
        raise UsageError(f"{node.label} has no pod", f"fab status {record.name}")
    write_err("a shell beside the training: to leave it, type exit")
    scope = cluster.scope
    pod = pods[-1]["metadata"]["name"]
    return (*_kubectl(scope), "exec", "-it", pod, "--container", CONTAINER, "--", "sh", "-c", "exec bash || exec sh")


def _kubectl(scope: ClusterScope) -> tuple[str, ...]:
    """Return `kubectl` with the options that select the cluster and the namespace."""
    config = ("--kubeconfig", scope.kubeconfig) if scope.kubeconfig and ":" not in scope.kubeconfig else ()
    context = ("--context", scope.context) if scope.context else ()
    return ("kubectl", *config, *context, "--namespace", scope.namespace)

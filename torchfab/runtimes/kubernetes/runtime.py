"""The Kubernetes runtime: a job is a Job (or a JobSet) with a Service and a Secret, and its nodes are pods.

torchfab keeps no process for it: the cluster runs it, and is asked.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torchfab.core.console import write_err
from torchfab.core.errors import Interrupted, TorchfabError, UsageError
from torchfab.core.events import EventStream
from torchfab.core.specs import Node, Submission
from torchfab.core.status import JobStatus, NodeStatus, Verdict
from torchfab.launchers.manifest.objects import CONTAINER, ID_LABEL, metadata_of
from torchfab.launchers.manifest.yaml_text import from_yaml
from torchfab.records import Record
from torchfab.runtimes import StopReport
from torchfab.runtimes.kubernetes import archive, redaction
from torchfab.runtimes.kubernetes.client import Cluster, ClusterError, ClusterScope, detect_scope
from torchfab.runtimes.kubernetes.evidence import gather
from torchfab.runtimes.kubernetes.log_stream import Follower
from torchfab.runtimes.kubernetes.query import look, see
from torchfab.runtimes.kubernetes.status import Object, Seen, index_of, job_status
from torchfab.stacks.model import Dump
from torchfab.why.evidence import Evidence

NAME = "kubernetes"
_POLL_S = 0.2


# ---- submitting


def submit(record: Record, submission: Submission) -> dict[str, Any]:
    """Create the job's objects; if one cannot be, take back those before it.

    Returns
    -------
    dict
        Which cluster and namespace it is in: kept in the record.

    Raises
    ------
    TorchfabError
        The cluster cannot be reached, or refuses; nothing is left there, unless the error says so.
    """
    told = submission.details
    cluster = Cluster(detect_scope(told["context"], told["namespace"]), record.settings.answer_timeout_s)
    where = f"{told['kind']} {told['name']} in namespace {cluster.place.namespace}"
    details = {**vars(cluster.place), "server": cluster.server, "known_as": where}
    _check_claims(cluster, told["claims"])
    try:
        for item in _objects(submission, cluster.place):
            _create(cluster, item)
    except BaseException as error:
        raise _after_rollback(cluster, submission, error) from None
    return details


def _objects(submission: Submission, place: ClusterScope) -> list[Mapping[str, Any]]:
    """Return what is created: what the dry run prints, and the Secret with the values that it does not."""
    told, job = submission.details, submission.job
    found = [redaction.annotated(item, job.secrets, job.mask_key) for item in from_yaml(submission.text)]
    if job.secrets:
        metadata = metadata_of(told["secret"], told["id"], job.name, place.namespace)
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
            continue  # who may not look may use it nevertheless
        if there is None:
            where = f"namespace {cluster.place.namespace}"
            raise UsageError(f"--pvc: there is no PersistentVolumeClaim {name} in {where}", "kubectl get pvc")


def _create(cluster: Cluster, item: Mapping[str, Any]) -> None:
    kind, name = item["kind"], item["metadata"]["name"]
    try:
        cluster.create(item)
    except ClusterError as error:
        if error.status != 409:
            raise
        where = f"in namespace {cluster.place.namespace}"
        fix = f"choose another --name, or delete that one: kubectl -n {cluster.place.namespace} delete {kind} {name}"
        raise ClusterError(f"there is a {kind} {name} {where} already, of another launch", fix, 409) from None


def _after_rollback(cluster: Cluster, submission: Submission, error: BaseException) -> BaseException:
    """Take back what was created; return the error to raise."""
    told = submission.details
    try:
        left = _take_down(cluster, told, 1.0, time.monotonic() + cluster.timeout_s)
    except TorchfabError as second:
        left = [f"what there is of {told['kind']} {told['name']} ({second.message})"]
    if isinstance(error, KeyboardInterrupt):
        error = Interrupted("interrupted; " + (f"left behind: {', '.join(left)}" if left else "nothing was left"))
    elif isinstance(error, TorchfabError) and left:
        error.message += f"; left behind: {', '.join(left)}"
        error.fix = f"when the cluster answers again: fab stop {submission.job.name}"
    if isinstance(error, TorchfabError) and left:
        error.unsure = (cluster.server,)
    return error


# ---- the life of a job


def _cluster(record: Record) -> Cluster:
    """Return the cluster that the job was handed to; of a launch that was killed midway, the one that it meant."""
    told = record.details
    if "server" not in told:
        return Cluster(detect_scope(told["context"], told["namespace"]), record.settings.answer_timeout_s)
    place = ClusterScope(told["kubeconfig"], told["context"], told["namespace"])
    return Cluster(place, record.settings.answer_timeout_s)


def _cluster_unless_gone(record: Record) -> Cluster | None:
    """Return the cluster; None when it is known to hold nothing of the job any more."""
    return None if archive.is_gone(record) and archive.was_kept(record) else _cluster(record)


def status(record: Record) -> JobStatus:
    """Ask the cluster how the job is; of one that was stopped, tell how it was then."""
    try:
        seen, stopped = look(_cluster_unless_gone(record), record, with_lines=True)
    except TorchfabError as error:
        return _unreachable(record, error)
    return job_status(record.nodes, replace(seen, now=time.time()), record.details, stopped)


def evidence(record: Record) -> Evidence:
    """Ask the cluster what it knows of how the job went."""
    try:
        cluster = _cluster_unless_gone(record)
        seen, stopped = look(cluster, record, with_lines=True)
    except TorchfabError as error:
        return Evidence(record.name, record.created, _unreachable(record, error), ())
    job = job_status(record.nodes, replace(seen, now=time.time()), record.details, stopped)
    return gather(cluster, record, seen, job)


def _unreachable(record: Record, error: TorchfabError) -> JobStatus:
    nodes = tuple(NodeStatus(node, "unreachable", error.message) for node in record.nodes)
    return JobStatus(nodes, len(nodes), Verdict("unreachable", reason=error.message))


def follow(record: Record, request: Mapping[str, Any], nodes: Sequence[Node] | None = None) -> EventStream:
    """Yield what the logs of the pods hold and receive, how the job is when that changes, and how it ends.

    Parameters
    ----------
    request : Mapping
        `follow`, `lines`, `ranks`, `grep`: as `torchfab.remote.job.log_reader.Reader` takes them.
    """
    yield from Follower(record, request, _cluster_unless_gone(record), nodes or record.nodes).events()


# ---- stop


def stop(record: Record, grace_s: float, nodes: Sequence[Node] | None = None) -> tuple[StopReport, ...]:
    """Delete the job's objects, and see that they and all its pods are gone; its logs are kept in its record.

    Parameters
    ----------
    nodes : sequence of Node, optional
        Only the pods of these; Job and logs stay then.
    """
    chosen = record.nodes if nodes is None else nodes
    begun = time.monotonic()
    until = begun + grace_s + record.settings.answer_timeout_s
    try:
        cluster = _cluster(record)
        seen = see(cluster, record, with_lines=nodes is None)
        pods = [pod for pod in seen.pods if index_of(pod) in {node.rank for node in chosen}]
        if nodes is not None:
            left = _end_pods(cluster, record.details, pods, grace_s, until)
        else:
            _keep(cluster, record, seen)
            left = _take_down(cluster, record.details, grace_s, until)
    except TorchfabError as error:
        return tuple(StopReport(node, error=error) for node in chosen)
    if nodes is None and not left:
        archive.note_gone(record)
    what = _kinds(record.details) if nodes is None else ""
    return tuple(_report(node, pods, left, what, time.monotonic() - begun) for node in chosen)


def _kinds(told: Mapping[str, Any]) -> str:
    kinds = [told["kind"], *(["Service"] if told["kind"] == "Job" else []), *(["Secret"] if told["secret"] else [])]
    return f"{', '.join(kinds[:-1])} and {kinds[-1]} are gone, " if len(kinds) > 1 else f"{kinds[0]} is gone, "


def _report(node: Node, pods: Sequence[Object], left: Sequence[str], what: str, seconds: float) -> StopReport:
    own = [f"Pod {pod['metadata']['name']}" for pod in pods if index_of(pod) == node.rank]
    # What is no pod of any node, such as the Job, is told with the first.
    others = [each for each in left if node.rank == 0 and not each.startswith("Pod ")]
    mine = (*others, *(each for each in left if any(f"{each} ".startswith(f"{name} ") for name in own)))
    if mine:
        return StopReport(node, len(own), left=mine, seconds=seconds, summary=f"still there: {'; '.join(mine)}")
    words = f"{what}its pod is gone, within {seconds:.1f} s" if own else f"{what}it had no pod"
    return StopReport(node, len(own), seconds=seconds, summary=words)


def _keep(cluster: Cluster, record: Record, seen: Seen) -> None:
    if seen.job is None and not seen.pods:
        return  # it was deleted before, by us or by somebody else
    for pod in seen.pods:
        try:
            archive.keep_log(record, pod["metadata"]["name"], cluster.log(pod["metadata"]["name"], follow=False))
        except (ClusterError, OSError) as error:
            write_err(f"{pod['metadata']['name']}: its log could not be kept: {error}")
    archive.keep(record, seen)


def _take_down(cluster: Cluster, told: Mapping[str, Any], grace_s: float, until: float) -> list[str]:
    """Delete the job's objects and pods, and wait until they are gone; return what is left at `until`, described.

    Only what carries the job's id is touched: another job may have the name.
    """
    named = ((told["kind"], told["name"]), ("Service", told["name"]), ("Secret", told["secret"]))
    mine = [(kind, name) for kind, name in named if name and _is_ours(cluster, kind, name, told["id"])]
    for kind, name in mine:
        cluster.delete(kind, name)
    asked: set[str] = set()
    while True:
        pods = cluster.list("Pod", f"{ID_LABEL}={told['id']}")
        _ask_to_end(cluster, [pod for pod in pods if pod["metadata"]["uid"] not in asked], grace_s)
        asked |= {pod["metadata"]["uid"] for pod in pods}
        left = [f"{kind} {name}" for kind, name in mine if _is_ours(cluster, kind, name, told["id"])]
        left += [_pod_words(pod) for pod in pods]
        if not left or time.monotonic() > until:
            return left
        time.sleep(_POLL_S)


def _end_pods(
    cluster: Cluster, told: Mapping[str, Any], pods: Sequence[Object], grace_s: float, until: float
) -> list[str]:
    """Delete some of the job's pods, and wait until they are gone; return what is left at `until`, described."""
    ids = {pod["metadata"]["uid"] for pod in pods}
    _ask_to_end(cluster, pods, grace_s)
    while True:
        there = cluster.list("Pod", f"{ID_LABEL}={told['id']}")
        left = [_pod_words(pod) for pod in there if pod["metadata"]["uid"] in ids]
        if not left or time.monotonic() > until:
            return left
        time.sleep(_POLL_S)


def _ask_to_end(cluster: Cluster, pods: Sequence[Object], grace_s: float) -> None:
    # With 0 s the cluster would forget a pod at once, whether its machine had ended it or not: that proves nothing.
    for pod in pods:
        cluster.delete("Pod", pod["metadata"]["name"], max(1, math.ceil(grace_s)), pod["metadata"]["uid"])


def _is_ours(cluster: Cluster, kind: str, name: str, token: str) -> bool:
    try:
        found = cluster.get(kind, name)
    except ClusterError as error:
        if kind == "Secret" and error.status == 403:
            return False  # who may not read Secrets could not have made one
        raise
    return found is not None and (found["metadata"].get("labels") or {}).get(ID_LABEL) == token


def _pod_words(pod: Object) -> str:
    machine = pod["spec"].get("nodeName")
    return f"Pod {pod['metadata']['name']}" + (f" on {machine}, which may not answer" if machine else "")


def forget(record: Record) -> dict[str, TorchfabError]:
    """Delete what the cluster still holds of a job that has ended; return why that failed, by host."""
    try:
        cluster = _cluster(record)
        left = _take_down(cluster, record.details, 1.0, time.monotonic() + record.settings.answer_timeout_s)
    except TorchfabError as error:  # no answer, or no kubeconfig any more
        return {record.details.get("server", "the cluster"): error}
    return {each: TorchfabError("is still there") for each in left}


# ---- stacks


def stacks(record: Record, request: Mapping[str, Any]) -> Dump:
    """Raise TorchfabError, which says what to type instead: nothing of ours is in the pods, and hardly ever py-spy."""
    cluster = _cluster(record)
    pods = [pod["metadata"]["name"] for pod in cluster.list("Pod", f"{ID_LABEL}={record.details['id']}")]
    words = (*_kubectl(cluster.place), "exec", *(pods[-1:] or ["POD"]), "--container", CONTAINER, "--")
    command = shlex.join((*words, "py-spy", "dump", "--pid", "1", "--subprocesses"))
    needs = "the image needs py-spy, and the container the capability SYS_PTRACE"
    raise TorchfabError("fab stacks cannot look into pods yet", f"pod by pod ({len(pods)}): {command} ({needs})")


# ---- attach


def machines(record: Record) -> list[tuple[Node, Mapping[str, Any] | None]]:
    """Raise UsageError: ssh reaches no pod."""
    raise UsageError(
        f"job {record.name} runs in pods, which ssh does not reach",
        "kubectl top pod; or name the cluster's machines with -H, if ssh reaches those",
    )


def attach_argv(record: Record, node: Node, window: str) -> tuple[str, ...]:
    """Return the command that opens a shell in a node's pod."""
    cluster = _cluster(record)
    pods = see(cluster, record, with_lines=False).pods_of(node.rank)
    if not pods:
        raise UsageError(f"{node.label} has no pod", f"fab status {record.name}")
    write_err("a shell beside the training: to leave it, type exit")
    place = cluster.place
    pod = pods[-1]["metadata"]["name"]
    return (*_kubectl(place), "exec", "-it", pod, "--container", CONTAINER, "--", "sh", "-c", "exec bash || exec sh")


def _kubectl(place: ClusterScope) -> tuple[str, ...]:
    """Return kubectl with the options that name the cluster and the namespace."""
    config = ("--kubeconfig", place.kubeconfig) if place.kubeconfig and ":" not in place.kubeconfig else ()
    context = ("--context", place.context) if place.context else ()
    return ("kubectl", *config, *context, "--namespace", place.namespace)

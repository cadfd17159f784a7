"""What pods know of why a job ended: the ends of their logs by rank, and the cluster's own reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torchfab.core.status import JobStatus, NodeStatus
from torchfab.records import Record
from torchfab.runtimes.kubernetes import archive, reasons
from torchfab.runtimes.kubernetes.client import Cluster
from torchfab.runtimes.kubernetes.log_lines import Line, Reader
from torchfab.runtimes.kubernetes.status import Object, Seen, container_of, has_started
from torchfab.transport.fanout import fan_out
from torchfab.why.evidence import Evidence, Log, NodeEvidence, Said

_UNREAD = "a pod does not show it"
_TAIL_LINES = 400  # of a pod, per rank
_LONGEST_LINE = 1000
_FANOUT = 32


def gather(cluster: Cluster | None, record: Record, seen: Seen, job: JobStatus) -> Evidence:
    """Return what is known of a job.

    Parameters
    ----------
    cluster : Cluster, optional
        None where it holds nothing of the job any more: the logs that were kept are read.
    job : JobStatus
        As `torchfab.runtimes.kubernetes.status.job_status` has it of `seen`.
    """
    nodes: dict[int, NodeEvidence] = {}

    def act(status: NodeStatus) -> NodeEvidence:
        return _of_node(cluster, record, status, seen.pods_of(status.node.rank))

    for status, found in fan_out(job.nodes, act, _FANOUT):
        # A log that cannot be read is no reason to say nothing.
        nodes[status.node.rank] = NodeEvidence(status) if isinstance(found, Exception) else found
    ordered = tuple(nodes[status.node.rank] for status in job.nodes)
    said = tuple(each for status in job.nodes for each in _said(status, seen.pods_of(status.node.rank)))
    return Evidence(record.name, record.created, job, ordered, said, record.events())


def _of_node(cluster: Cluster | None, record: Record, status: NodeStatus, pods: Sequence[Object]) -> NodeEvidence:
    if not pods or not has_started(pods[-1]):
        return NodeEvidence(status, kernel_unread=_UNREAD)
    name, ranks = pods[-1]["metadata"]["name"], record.details["ranks_per_node"]
    if cluster is None:
        blocks: Iterable[bytes] = archive.kept_log(record, name) or ()
    else:
        blocks = cluster.log(name, follow=False, tailLines=_TAIL_LINES * (ranks + 1))
    reader = Reader(status.node.rank * ranks, {"ranks": None, "grep": None, "lines": _TAIL_LINES})
    return NodeEvidence(status, _logs(name, reader.past(blocks)), kernel_unread=_UNREAD)


def _logs(pod: str, lines: Sequence[Line]) -> tuple[Log, ...]:
    texts: dict[int | str, list[Line]] = {}
    for line in lines:
        texts.setdefault(line[0], []).append(line)
    return tuple(
        Log(label, f"pod {pod}", "\n".join(text[:_LONGEST_LINE] for _, _, text in own), own[-1][1])
        for label, own in texts.items()
    )


def _said(status: NodeStatus, pods: Sequence[Object]) -> list[Said]:
    """Return why the cluster ended a node's newest pod, where it was the cluster's doing."""
    if not pods or status.state not in ("failed", "lost", "pending"):
        return []
    ended: Mapping[str, object] = (container_of(pods[-1]).get("state") or {}).get("terminated") or {}
    sign = reasons.sign_of(pods[-1], ended)
    return [Said(sign, reasons.of_failed(pods[-1], ended), status.node.label)] if sign else []

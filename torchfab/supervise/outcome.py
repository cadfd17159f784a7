"""Determine why an attempt ended: from the diagnosis of `fab why`, and doctor's findings on its nodes."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from torchfab import runtimes
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.format import duration
from torchfab.core.inventory import fold
from torchfab.core.specs import Node
from torchfab.doctor import CheckRequirements, Finding, collect
from torchfab.records import Record
from torchfab.records.launch_request import LaunchRequest
from torchfab.supervise.attempt_monitor import Trigger
from torchfab.supervise.model import AttemptOutcome
from torchfab.why import diagnosis
from torchfab.why.causes import Kind
from torchfab.why.diagnosis import Diagnosis

# Findings about one node alone. Differences between nodes do not count: they did not prevent the first launch.
UNHEALTHY_FINDINGS = (
    *("unreachable", "not-looked-at", "python-missing", "tmux-missing", "workdir-missing", "disk-not-writable"),
    *("gpu-driver", "gpu-lost", "gpu-ecc", "gpu-xid"),
)
# Causes that are observed on the node itself; for all others the script's output is the only evidence.
_OBSERVED_CAUSES = ("node-rebooted", "node-lost", "node-failed", "node-unreachable")
_RETRY_S = 2.0
_log = logging.getLogger(__name__)


def classify(record: Record, trigger: Trigger) -> tuple[AttemptOutcome, Diagnosis]:
    """Determine how an attempt ended from the evidence of `fab why`. Doctor's findings are not included yet.

    Parameters
    ----------
    record : Record
        The attempt.
    trigger : Trigger
        Why the monitor stopped watching.

    Returns
    -------
    AttemptOutcome, Diagnosis
        The outcome, and the diagnosis that it is based on.
    """
    diagnosed = diagnosis.diagnose(runtimes.load(record.runtime).evidence(record))
    # Nodes that do not answer are left to doctor, because they may be back by then.
    answering = [host for host in diagnosed.bad_nodes if host not in diagnosed.unreachable]
    bad = dict.fromkeys(answering, diagnosed.cause.words) if diagnosed.cause.name in _OBSERVED_CAUSES else {}
    kind, name, words = _cause(diagnosed, trigger)
    outcome = AttemptOutcome(
        attempt=record.attempt,
        kind=kind,
        name=name,
        words=words,
        fingerprint="" if kind == "stall" else diagnosed.fingerprint,
        bad=bad if kind != "succeeded" else {},
        blamed=() if bad else tuple(answering),
        step=trigger.step,
        lived_s=time.time() - record.created,
        code=trigger.status.exit_code,
    )
    return outcome, diagnosed


def _cause(diagnosed: Diagnosis, trigger: Trigger) -> tuple[str, str, str]:
    """Return kind, name and description of the cause."""
    # A node that reported its success may be out of reach by now.
    if trigger.kind == "ended" and not trigger.status.exit_code:
        return Kind.SUCCEEDED.name.lower(), "succeeded", "all reachable nodes have succeeded"
    if trigger.kind == "stall":
        return "stall", "stall", f"no rank has logged for {duration(trigger.silent_s)}: it hangs"
    if trigger.kind == "lost" and diagnosed.unreachable and diagnosed.first is None:
        words = f"{fold(list(diagnosed.unreachable))} cannot be reached, and the job cannot continue without"
        return Kind.NODE.name.lower(), "node-unreachable", words
    if diagnosed.cause.kind is Kind.RUNNING:
        return (
            Kind.NETWORK.name.lower(),
            "out-of-reach",
            "nodes were out of reach for too long, and are reachable again",
        )
    who = f"{diagnosed.first.label}: " if diagnosed.first and diagnosed.cause.name != "node-unreachable" else ""
    return diagnosed.cause.kind.name.lower(), diagnosed.cause.name, f"{who}{diagnosed.cause.words}"


def unhealthy_nodes(
    nodes: Sequence[Node], request: LaunchRequest, settings: ConnectionSettings, patience_s: float
) -> Mapping[str, str]:
    """Determine with doctor's checks which nodes the job cannot run on.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes to check.
    request : LaunchRequest
        The job.
    settings : ConnectionSettings
        How to connect to the nodes.
    patience_s : float
        How long to retry nodes that are out of reach, in seconds.

    Returns
    -------
    Mapping of str to str
        The reason for each unhealthy node, by host label.
    """
    unhealthy: dict[str, str] = {}
    job = request.job
    requirements = CheckRequirements(
        workdir=job.workdir, python=job.python, node_dir=job.node_dir, names=(), env=job.env
    )
    deadline, left = time.monotonic() + patience_s, list(nodes)
    while left:
        report = collect.examine(left, settings, requirements)
        unhealthy |= {host: _reason(each) for each in reversed(report.errors()) for host in _unhealthy_hosts(each)}
        silent = [each.node for each in report.nodes if each.error is not None]
        if not silent or time.monotonic() >= deadline:
            break
        for node in silent:
            unhealthy.pop(node.label, None)
        _log.debug("%d nodes are out of reach; trying them again in %g s", len(silent), _RETRY_S)
        time.sleep(_RETRY_S)
        left = silent
    return unhealthy


def _unhealthy_hosts(finding: Finding) -> Sequence[str]:
    return finding.hosts if finding.kind in UNHEALTHY_FINDINGS else ()


def _reason(finding: Finding) -> str:
    return f"cannot be reached: {finding.what}" if finding.kind == "unreachable" else finding.what

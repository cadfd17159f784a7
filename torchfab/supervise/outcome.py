"""Why an attempt ended, for a decision: the story of `fab why`, and what doctor finds on its nodes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from torchfab import doctor, runtimes
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.inventory import fold
from torchfab.core.specs import Node
from torchfab.core.status import duration
from torchfab.records import Record
from torchfab.records.launch_request import LaunchRequest
from torchfab.supervise.model import AttemptOutcome
from torchfab.supervise.monitor import Trigger
from torchfab.why import diagnosis
from torchfab.why.causes import Kind
from torchfab.why.diagnosis import Diagnosis

# What doctor finds on one node alone; that nodes differ was no reason not to launch.
SICK = (
    *("unreachable", "not-looked-at", "python-missing", "tmux-missing", "workdir-missing", "disk-not-writable"),
    *("gpu-driver", "gpu-lost", "gpu-ecc", "gpu-xid"),
)
# Causes for which not the script's words but the node itself stands.
_SEEN = ("node-rebooted", "node-lost", "node-failed", "node-unreachable")
_AGAIN_S = 2.0


def hold(record: Record, sight: Trigger) -> tuple[AttemptOutcome, Diagnosis]:
    """Return how an attempt ended, from the story of `fab why`; nobody is taken to be sick yet but by that."""
    told = diagnosis.diagnose(runtimes.load(record.runtime).evidence(record))
    # Whether nodes that do not answer are lost is doctor's to say: they may be back by then.
    heard = [host for host in told.bad_nodes if host not in told.silent]
    bad = dict.fromkeys(heard, told.cause.words) if told.cause.name in _SEEN else {}
    kind, name, words = _kind(told, sight)
    ending = AttemptOutcome(
        attempt=record.attempt,
        kind=kind,
        name=name,
        words=words,
        fingerprint="" if kind == "stall" else told.fingerprint,
        bad=bad if kind != "succeeded" else {},
        blamed=() if bad else tuple(heard),
        step=sight.step,
        lived_s=time.time() - record.created,
        code=sight.status.exit_code,
    )
    return ending, told


def _kind(told: Diagnosis, sight: Trigger) -> tuple[str, str, str]:
    if sight.kind == "ended" and not sight.status.exit_code:  # a node may be out of reach by now, that had told its end
        return Kind.SUCCEEDED.name.lower(), "succeeded", "all nodes that could be asked have succeeded"
    if sight.kind == "stall":
        return "stall", "stall", f"no rank has logged for {duration(sight.silent_s)}: it hangs"
    if sight.kind == "lost" and told.silent and told.first is None:
        words = f"{fold(list(told.silent))} cannot be reached, and it cannot go on without"
        return Kind.NODE.name.lower(), "node-unreachable", words
    if told.cause.kind is Kind.RUNNING:
        return Kind.NETWORK.name.lower(), "out-of-reach", "nodes were out of reach for too long, and are back"
    who = f"{told.first.who}: " if told.first and told.cause.name != "node-unreachable" else ""
    return told.cause.kind.name.lower(), told.cause.name, f"{who}{told.cause.words}"


def sick(
    nodes: Sequence[Node], asked: LaunchRequest, settings: ConnectionSettings, patience_s: float
) -> Mapping[str, str]:
    """Ask doctor which of these nodes are not fit, and why; one that is out of reach is asked again for a while.

    Parameters
    ----------
    patience_s : float
        For how long.
    """
    found: dict[str, str] = {}
    wanted = doctor.CheckRequirements(
        workdir=asked.job.workdir, python=asked.job.python, node_dir=asked.job.node_dir, names=(), env=asked.job.env
    )
    deadline, left = time.monotonic() + patience_s, list(nodes)
    while left:
        report = doctor.examine(left, settings, wanted)
        about = {host: _reason(finding) for finding in reversed(report.errors()) for host in _sick_hosts(finding)}
        silent = [seen.node for seen in report.nodes if seen.error is not None]
        found |= about
        if not silent or time.monotonic() >= deadline:
            break
        for node in silent:
            found.pop(node.label, None)
        time.sleep(_AGAIN_S)
        left = silent
    return found


def _sick_hosts(finding: doctor.Finding) -> Sequence[str]:
    return finding.hosts if finding.kind in SICK else ()


def _reason(finding: doctor.Finding) -> str:
    return f"cannot be reached: {finding.what}" if finding.kind == "unreachable" else finding.what

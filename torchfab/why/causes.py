"""Causes: their kinds, and the reasons that Slurm and Kubernetes report."""

from __future__ import annotations

import enum

from torchfab.core.lazy_dataclass import dataclass


class Kind(enum.Enum):
    """The class of a cause, which determines the next step: fix the script, replace a node, relaunch."""

    SCRIPT = "the script itself failed"
    NODE = "a node was lost or is faulty"
    MEMORY = "memory ran out"
    KILLED = "killed from outside"
    NETWORK = "the network, or the rendezvous"
    STOPPED = "stopped on request"
    RUNNING = "it runs"
    SUCCEEDED = "it has succeeded"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Cause:
    """The cause of a failure, or of the state that a job is in.

    Parameters
    ----------
    kind : Kind
        Class of the cause.
    name : str
        Identifier within the kind, for programs: `disk-full`.
    words : str
        Human-readable description: a clause without a full stop.
    fix : str
        How to fix it; empty if unknown.
    is_symptom : bool
        Whether other ranks report this when one rank fails. A symptom is the cause only if nothing else failed.
    """

    kind: Kind
    name: str
    words: str
    fix: str = ""
    is_symptom: bool = False


# Reasons that schedulers report, under their own names: kind, name, fix.
SCHEDULED = {
    "OUT_OF_MEMORY": (Kind.MEMORY, "host-memory", "request more: --sbatch-arg=--mem=..., or use less"),
    "OOMKilled": (Kind.MEMORY, "host-memory", "request more: --memory, or use less"),
    "TIMEOUT": (Kind.KILLED, "time-limit", "request more --time, and resume from a checkpoint"),
    "DEADLINE": (Kind.KILLED, "time-limit", "submit it earlier, or with a later deadline"),
    "NODE_FAIL": (Kind.NODE, "node-failed", "launch it again; Slurm excludes nodes that are down"),
    "BOOT_FAIL": (Kind.NODE, "node-failed", "launch it again; Slurm excludes nodes that are down"),
    "PREEMPTED": (Kind.KILLED, "preempted", "launch it again, and resume from a checkpoint"),
    "CANCELLED": (Kind.STOPPED, "cancelled", ""),
    "REVOKED": (Kind.KILLED, "revoked", ""),
    "Evicted": (
        Kind.KILLED,
        "evicted",
        "see which resource of the pod's machine was exhausted; request what the job needs",
    ),
    "PreemptionByScheduler": (Kind.KILLED, "preempted", "launch it again, and resume from a checkpoint"),
    "EvictionByEvictionAPI": (Kind.KILLED, "evicted", "launch it again, and resume from a checkpoint"),
    "DeletionByTaintManager": (Kind.NODE, "node-failed", "launch it again"),
    "DeletionByPodGC": (Kind.NODE, "node-failed", "launch it again"),
    "TerminationByKubelet": (Kind.NODE, "node-failed", "launch it again"),
    "DeadlineExceeded": (Kind.KILLED, "time-limit", "give it more time, and resume from a checkpoint"),
    "ContainerCannotRun": (
        Kind.SCRIPT,
        "not-started",
        "see the image and the command: fab launch-kubernetes --dry-run",
    ),
    "StartError": (Kind.SCRIPT, "not-started", "see the image and the command: fab launch-kubernetes --dry-run"),
    "BATCH": (Kind.SCRIPT, "batch-script", "see its output: fab logs"),
}


def cause_of_schedule(reason: str, words: str) -> Cause:
    """Return the cause for a reason that a scheduler reports.

    Parameters
    ----------
    reason : str
        The scheduler's own name: OUT_OF_MEMORY, OOMKilled.
    words : str
        Human-readable description.

    Returns
    -------
    Cause
        Of kind UNKNOWN if the reason is not in SCHEDULED.
    """
    kind, name, fix = SCHEDULED.get(reason, (Kind.UNKNOWN, "scheduler", ""))
    return Cause(kind, name, words, fix)

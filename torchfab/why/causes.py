"""Why something ended: what kinds of causes there are, and those that a scheduler names."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """What a cause means for what to do next."""

    SCRIPT = "the script itself failed"
    NODE = "a node was lost, or is sick"
    MEMORY = "memory ran out"
    KILLED = "killed from outside"
    NETWORK = "the network, or the rendezvous"
    STOPPED = "stopped on request"
    RUNNING = "it runs"
    SUCCEEDED = "it has succeeded"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Cause:
    """Why something ended.

    Parameters
    ----------
    kind : Kind
        What it means for what to do next.
    name : str
        Which one of the kind, for machines.
    words : str
        The same for people: a clause, without a full stop.
    fix : str
        What to do about it.
    is_symptom : bool
        Whether it is what the others see when one of them fails: it is the cause only where nothing else failed.
    """

    kind: Kind
    name: str
    words: str
    fix: str = ""
    is_symptom: bool = False


# What schedulers say, by their own names.
SCHEDULED = {
    "OUT_OF_MEMORY": (Kind.MEMORY, "host-memory", "ask for more: --sbatch-arg=--mem=..., or use less"),
    "OOMKilled": (Kind.MEMORY, "host-memory", "ask for more: --memory, or use less"),
    "TIMEOUT": (Kind.KILLED, "time-limit", "ask for more --time, and resume from a checkpoint"),
    "DEADLINE": (Kind.KILLED, "time-limit", "submit it earlier, or with a later deadline"),
    "NODE_FAIL": (Kind.NODE, "node-failed", "launch it again; Slurm leaves a node out that is down"),
    "BOOT_FAIL": (Kind.NODE, "node-failed", "launch it again; Slurm leaves a node out that is down"),
    "PREEMPTED": (Kind.KILLED, "preempted", "launch it again, and resume from a checkpoint"),
    "CANCELLED": (Kind.STOPPED, "cancelled", ""),
    "REVOKED": (Kind.KILLED, "revoked", ""),
    "Evicted": (Kind.KILLED, "evicted", "see what the pod's machine ran out of; ask for what the job needs"),
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
    "BATCH": (Kind.SCRIPT, "batch-script", "see what it said: fab logs"),
}


def of_schedule(sign: str, words: str) -> Cause:
    """Return the cause that a scheduler names."""
    kind, name, fix = SCHEDULED.get(sign, (Kind.UNKNOWN, "scheduler", ""))
    return Cause(kind, name, words, fix)

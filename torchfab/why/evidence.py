"""What is known of how a job went: frozen values, the same for every runtime, all times on this machine's clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchfab.core import status as states
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus

Label = int | str


@dataclass(frozen=True)
class Log:
    """The end of a log file.

    Parameters
    ----------
    label : int or str
        The rank that wrote it, `agent` for the launcher, or `local N`.
    path : str
        Where it lies on the node.
    text : str
        Its end.
    written : float
        When it was last written, in seconds since the epoch.
    """

    label: Label
    path: str
    text: str
    written: float


@dataclass(frozen=True)
class Report:
    """An error file, as torchelastic's `record` writes it: whose, the exception, its traceback if it has one."""

    label: Label
    attempt: int
    message: str
    traceback: str


@dataclass(frozen=True)
class KernelLine:
    """One line of a node's kernel."""

    time: float
    text: str


@dataclass(frozen=True)
class Disk:
    """A file system: the path that was asked for, bytes free for this user, and its size."""

    path: str
    free: int
    size: int


@dataclass(frozen=True)
class Said:
    """What a scheduler says ended the job, or a node's part of it.

    Parameters
    ----------
    sign : str
        The scheduler's own name for it: OUT_OF_MEMORY, OOMKilled, Evicted.
    words : str
        The same for people.
    host : str
        On which node; empty where it is the whole job.
    time : float
        When; 0 where it is not known.
    """

    sign: str
    words: str
    host: str = ""
    time: float = 0.0


@dataclass(frozen=True)
class NodeEvidence:
    """What one node knows.

    Parameters
    ----------
    status : NodeStatus
        As `fab status` has it.
    logs, reports : tuples
        The ends of its log files (of ranks: of the last attempt), and its error files.
    ends : Mapping of str to Mapping
        Name of a process -> what its supervisor wrote down at its end: `asked`, `killed`, `left`, `oom_kills`.
    kernel : tuple of KernelLine
        What the kernel said meanwhile.
    kernel_unread : str
        Why that could not be read.
    disks : tuple of Disk
        As full as they are now.
    halted : tuple of str
        What exists and was stopped by a signal (SIGSTOP), now: `rank 3`, `agent`.
    """

    status: NodeStatus
    logs: tuple[Log, ...] = ()
    reports: tuple[Report, ...] = ()
    ends: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    kernel: tuple[KernelLine, ...] = ()
    kernel_unread: str = ""
    disks: tuple[Disk, ...] = ()
    halted: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        """The node's name for people."""
        return self.status.node.label


@dataclass(frozen=True)
class Evidence:
    """All that is known of how a job went.

    Parameters
    ----------
    job : str
        Its name.
    created : float
        When it was launched, in seconds since the epoch.
    status : JobStatus
        As `fab status` has it.
    nodes : tuple of NodeEvidence
        In the order of node ranks.
    said : tuple of Said
        What a scheduler says.
    events : tuple of Mapping
        What this launch machine noted of the job: `time`, `event`, and more.
    batch : str
        The end of what a scheduler's batch script said.
    """

    job: str
    created: float
    status: JobStatus
    nodes: tuple[NodeEvidence, ...]
    said: tuple[Said, ...] = ()
    events: tuple[Mapping[str, Any], ...] = ()
    batch: str = ""

    @property
    def silent(self) -> dict[str, str]:
        """The hosts that could not be asked, and why; the scheduler, where it could not."""
        if self.status.verdict and self.status.verdict.state == "unreachable":
            return {"the scheduler": self.status.reason}
        return {each.host: each.status.reason for each in self.nodes if each.status.state == "unreachable"}


def of_answer(node: Node, answer: Mapping[str, Any], asked: float, answered: float) -> NodeEvidence:
    """Return a node's evidence from what it told (see `torchfab.remote.job.evidence`).

    Parameters
    ----------
    asked, answered : float
        When the question left and the answer came, by this machine's clock, in seconds since the epoch.
    """
    return of_told(states.from_answer(node, answer, asked, answered), answer.get("evidence") or {})


def of_told(status: NodeStatus, told: Mapping[str, Any]) -> NodeEvidence:
    """Return a node's evidence from its status and what was gathered there."""
    kernel = told.get("kernel") or {"unread": "the node itself was not asked"}
    return NodeEvidence(
        status,
        tuple(
            Log(each["label"], each["path"], each["text"], each["written"] - status.skew_s)
            for each in told.get("logs", ())
        ),
        tuple(Report(**each) for each in told.get("reports", ())),
        told.get("ends", {}),
        tuple(KernelLine(when - status.skew_s, text) for when, text in kernel.get("lines", ())),
        kernel.get("unread", ""),
        tuple(Disk(**each) for each in told.get("disks", ()) if each["free"] is not None),
        tuple(told.get("halted", ())),
    )


def in_order(nodes: Sequence[Node], found: Mapping[int, NodeEvidence]) -> tuple[NodeEvidence, ...]:
    """Return what the nodes told, in the order of their ranks."""
    return tuple(found[node.rank] for node in nodes if node.rank in found)

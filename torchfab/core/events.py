"""The events that a runtime yields while a job is watched."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

from torchfab.core.errors import TorchfabError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus


@dataclass(frozen=True)
class Lines:
    """Log lines of one node: each `[label, time, text]`, where the label is a rank, `agent`, or `local N`."""

    node: Node
    lines: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class BacklogRead:
    """All log lines that existed when the node's logs were first read have been yielded."""

    node: Node


@dataclass(frozen=True)
class NodeEnded:
    """The job has ended on a node, or all requested log lines were yielded."""

    status: NodeStatus


@dataclass(frozen=True)
class NodeFailed:
    """A process of the job has failed on a node where others still run."""

    status: NodeStatus


@dataclass(frozen=True)
class ContactLost:
    """A node is currently unreachable; the runtime retries it."""

    node: Node
    error: TorchfabError


@dataclass(frozen=True)
class StatusChanged:
    """The status of a scheduler's job and its nodes; yielded at each change, the last time when the job has ended."""

    status: JobStatus


@dataclass(frozen=True)
class Tick:
    """No event within the poll interval."""


Event: TypeAlias = Lines | BacklogRead | NodeEnded | NodeFailed | ContactLost | StatusChanged | Tick
EventStream: TypeAlias = Generator[Event, None, None]

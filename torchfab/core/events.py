"""What a runtime tells of a job while one watches it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torchfab.core.errors import TorchfabError
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus


@dataclass(frozen=True)
class Lines:
    """Log lines of one node: each `[label, time, text]`; the label is a rank, `agent`, or `local N`."""

    node: Node
    lines: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class BacklogRead:
    """All that the node's logs held when they were first read has been told."""

    node: Node


@dataclass(frozen=True)
class NodeEnded:
    """The job has ended on a node, or its logs were told as far as they were asked for."""

    status: NodeStatus


@dataclass(frozen=True)
class ContactLost:
    """A node cannot be reached for the moment; it will be tried again."""

    node: Node
    error: TorchfabError


@dataclass(frozen=True)
class StatusChanged:
    """How a scheduler's job is now, and on which nodes; told again when it changes, and at last when it has ended."""

    status: JobStatus


@dataclass(frozen=True)
class Tick:
    """Nothing happened; time passes."""


Event: TypeAlias = Lines | BacklogRead | NodeEnded | ContactLost | StatusChanged | Tick
EventStream: TypeAlias = Generator[Event, None, None]

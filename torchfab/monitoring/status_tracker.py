"""Combine the events and the polled status of a job into its last known status."""

from __future__ import annotations

import time
from dataclasses import field

from torchfab.core.events import Event, NodeEnded, NodeFailed, StatusChanged
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus, State
from torchfab.records import Record


@dataclass
class StatusTracker:
    """The last known status of a job.

    Parameters
    ----------
    record : Record
        The job.
    unreported_state : str
        The state of a node without a report.

    Attributes
    ----------
    ended : dict of int to NodeStatus
        The nodes on which the job has ended, by rank.
    scheduler_status : JobStatus, optional
        The last status of a scheduler's job; None for other jobs, and before the first.
    """

    record: Record
    unreported_state: State
    ended: dict[int, NodeStatus] = field(default_factory=dict)
    scheduler_status: JobStatus | None = None
    _polled: dict[int, NodeStatus] = field(default_factory=dict)
    _failed_at: float | None = None  # by the monotonic clock

    def apply(self, event: Event) -> None:
        """Record an event.

        Parameters
        ----------
        event : Event
            Only the end of a node, a failure on a node, and the status of a scheduler's job change the known status.
        """
        if isinstance(event, NodeEnded):
            self.ended[event.status.node.rank] = event.status
            self._note_failure()
        elif isinstance(event, NodeFailed):
            self._polled[event.status.node.rank] = event.status
            self._note_failure()
        elif isinstance(event, StatusChanged):
            self.scheduler_status = event.status
            self.ended = {node.node.rank: node for node in event.status.nodes if node.has_ended}
            if not event.status.has_failed:  # a scheduler may have requeued it after a failure
                self._failed_at = None
            self._note_failure()

    def apply_polled(self, polled: JobStatus) -> None:
        """Record a polled status. The report of a node at its end takes precedence.

        Parameters
        ----------
        polled : JobStatus
            The status.
        """
        self._polled.update({node.node.rank: node for node in polled.nodes})
        self._note_failure()

    def _note_failure(self) -> None:
        if self._failed_at is None and self.status().has_failed:
            self._failed_at = time.monotonic()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The job's nodes. Empty until a scheduler has allocated them."""
        return self.record.nodes or tuple(
            node.node for node in (self.scheduler_status.nodes if self.scheduler_status else ())
        )

    @property
    def failed_for_s(self) -> float:
        """Seconds since the failure of the job became known; 0 for a job that has not failed."""
        return 0.0 if self._failed_at is None else time.monotonic() - self._failed_at

    def has_reported_end(self, rank: int) -> bool:
        """Return whether a node has reported that no process of the job runs there any more.

        Parameters
        ----------
        rank : int
            The rank of the node.

        Returns
        -------
        bool
        """
        return rank in self.ended and self.ended[rank].has_ended

    def status(self) -> JobStatus:
        """Return the last known status of the job.

        Returns
        -------
        JobStatus
            The scheduler's status, if the job has a scheduler.
        """
        if self.scheduler_status is not None:
            return self.scheduler_status
        nodes = [self.ended.get(node.rank) or self._polled.get(node.rank) for node in self.record.nodes]
        known = [
            status or NodeStatus(node, self.unreported_state)
            for status, node in zip(nodes, self.record.nodes, strict=True)
        ]
        return JobStatus(tuple(known), self.record.min_nodes)

"""Log streams of the tmux runtime: one connection per node, resumed at the last offset after a connection loss."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torchfab.core import status
from torchfab.core.errors import TorchfabError
from torchfab.core.events import BacklogRead, ContactLost, Event, EventStream, Lines, NodeEnded, NodeFailed, Tick
from torchfab.core.specs import Node, session_name
from torchfab.records import Record
from torchfab.transport.messages.job import LogLine, LogsFrame, LogsRequest
from torchfab.transport.node_streams import NodeStreams
from torchfab.transport.session import NodeError

_POLL_S = 0.05


def address(record: Record, node: Node) -> dict[str, Any]:
    """Return the fields that identify a job in every request to a node.

    Parameters
    ----------
    record : Record
        The job.
    node : Node
        One of its nodes.

    Returns
    -------
    dict
        Job id, folder, node rank, redaction key and tmux session.
    """
    return {
        "job_id": record.job_id,
        "node_dir": node.node_dir or record.node_dir,
        "node_rank": node.rank,
        "mask_key": record.mask_key,
        "session": session_name(record.name, node.rank),
    }


class _NodeLogs:
    """Read position in the logs of one node: the offset up to which each file is read."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.offsets: dict[str, Any] = {}
        # Lines whose offsets have not arrived yet. They are yielded together with the offsets or dropped on a
        # connection loss, so no line is yielded twice.
        self.pending_lines: list[LogLine] = []
        self.is_done = False

    def events(self, update: Sequence[LogsFrame] | TorchfabError) -> Iterator[Event]:
        """Yield the events of new frames, or of a lost connection; all lines between other events in one event."""
        if isinstance(update, TorchfabError):
            self.pending_lines = []
            yield ContactLost(self.node, update)
            return
        lines: list[LogLine] = []
        for frame in update:
            self.pending_lines += frame.lines
            if frame.offsets is not None:
                lines += self.pending_lines
                self.offsets, self.pending_lines = frame.offsets, []
            if frame.past or frame.failed or frame.end or frame.problems:
                yield from self._new_lines(lines)
                lines = []
                yield from self._state_events(frame)
            if self.is_done:
                return
        yield from self._new_lines(lines)

    def _new_lines(self, lines: Sequence[LogLine]) -> Iterator[Event]:
        if lines:
            yield Lines(self.node, lines)

    def _state_events(self, update: LogsFrame) -> Iterator[Event]:
        if update.past:
            yield BacklogRead(self.node)
        now = time.time()
        if update.failed is not None:
            yield NodeFailed(status.from_answer(self.node, update.failed, now, now))
        if update.end is not None:
            self.is_done = True
            yield NodeEnded(status.from_answer(self.node, update.end, now, now))
        if update.problems:
            self.is_done = True
            reason = NodeError(update.problems).message
            yield NodeEnded(status.NodeStatus(self.node, status.State.UNREACHABLE, reason))


def follow(record: Record, request: Mapping[str, Any], nodes: Sequence[Node] | None = None) -> EventStream:
    """Yield the log lines of a job and its end on each node, over one connection per node.

    After a connection loss the node is retried every 5 seconds and reading resumes at the last offset. If there is no
    other event, a Tick is yielded, so that the caller can act on timeouts.

    Parameters
    ----------
    record : Record
        The job.
    request : Mapping
        `follow`, `lines`, `ranks`, `grep`: as `torchfab.remote.job.log_reader.Reader` takes them.
    nodes : sequence of Node, optional
        Follow these nodes only. Default: all.

    Returns
    -------
    iterator of Event
        Ends when the job has ended on all nodes, or without `follow` when the existing lines are read.
    """
    followed = record.nodes if nodes is None else nodes
    logs = {node.rank: _NodeLogs(node) for node in followed}

    def node_request(node: Node) -> LogsRequest:
        return LogsRequest(**address(record, node), **request, offsets=logs[node.rank].offsets or None)

    streams = NodeStreams(followed, record.settings, node_request)
    try:
        while not streams.are_finished:
            has_events = False
            for node, update in streams.poll():
                for event in logs[node.rank].events(update):
                    has_events = True
                    yield event
                if logs[node.rank].is_done:
                    streams.finish(node)
            if not has_events:
                time.sleep(_POLL_S)
                yield Tick()
    finally:
        streams.close()

"""Log streams of the tmux runtime: one connection per node, resumed at the last offset after a connection loss."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torchfab.core import status
from torchfab.core.errors import HostError
from torchfab.core.events import BacklogRead, ContactLost, Event, EventStream, Lines, NodeEnded, Tick
from torchfab.core.specs import Node, session_name
from torchfab.records import Record
from torchfab.transport.fanout import fan_out
from torchfab.transport.pool import problem_in
from torchfab.transport.session import Session
from torchfab.transport.ssh import connections, open_session

_POLL_S = 0.05
_RETRY_S = 5.0


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


class _Stream:
    """Log stream of one node: its session, if connected, and the offsets up to which each file is read."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.session: Session | None = None
        self.offsets: dict[str, int] = {}
        # Lines whose offsets have not arrived yet. They are yielded together with the offsets or dropped on a
        # connection loss, so no line is yielded twice.
        self.pending_lines: list[Sequence[Any]] = []
        self.asked = 0.0
        self.retry_at: float | None = None
        self.done = False


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
    streams = [_Stream(node) for node in (record.nodes if nodes is None else nodes)]
    opened: queue.SimpleQueue[tuple[_Stream, Session | Exception]] = queue.SimpleQueue()
    try:
        _open_in_background(streams, record, opened)
        while not all(stream.done for stream in streams):
            events = [*_request_logs(opened, record, request), *_read_frames(streams)]
            yield from events
            _retry(streams, record, opened)
            if not events:
                time.sleep(_POLL_S)
                yield Tick()
    finally:
        for stream in streams:
            if stream.session is not None:
                stream.session.close()


def _open_in_background(
    streams: Sequence[_Stream], record: Record, opened: queue.SimpleQueue[tuple[_Stream, Session | Exception]]
) -> None:
    by_rank = connections([stream.node for stream in streams], record.settings)

    def connect(stream: _Stream) -> Session:
        return open_session(stream.node, by_rank[stream.node.rank], record.settings)

    def open_all() -> None:
        for result in fan_out(streams, connect, record.settings.fanout):
            opened.put(result)

    threading.Thread(target=open_all, daemon=True).start()


def _request_logs(
    opened: queue.SimpleQueue[tuple[_Stream, Session | Exception]], record: Record, request: Mapping[str, Any]
) -> Iterator[Event]:
    while not opened.empty():
        stream, result = opened.get()
        try:
            if isinstance(result, Exception):
                raise result
            stream.session, stream.asked = result, time.time()
            offsets = {"offsets": stream.offsets} if stream.offsets else {}
            stream.session.post({**address(record, stream.node), **request, **offsets, "op": "logs"})
        except Exception as error:
            yield _disconnect(stream, error)


def _disconnect(stream: _Stream, error: Exception) -> ContactLost:
    if stream.session is not None:
        stream.session.close()
        stream.session = None
    stream.pending_lines = []
    stream.retry_at = time.monotonic() + _RETRY_S
    problem = problem_in(error)
    assert problem is not None
    return ContactLost(stream.node, problem)


def _retry(
    streams: Sequence[_Stream], record: Record, opened: queue.SimpleQueue[tuple[_Stream, Session | Exception]]
) -> None:
    due = [stream for stream in streams if stream.retry_at is not None and time.monotonic() > stream.retry_at]
    for stream in due:
        stream.retry_at = None
    if due:
        _open_in_background(due, record, opened)


def _read_frames(streams: Sequence[_Stream]) -> Iterator[Event]:
    for stream in streams:
        if stream.session is None or stream.done:
            continue
        try:
            for frame in stream.session.take():
                yield from _frame_events(stream, frame)
        except HostError as error:
            if not stream.done:
                yield _disconnect(stream, error)


def _frame_events(stream: _Stream, frame: Mapping[str, Any]) -> Iterator[Event]:
    stream.pending_lines += frame.get("lines", ())
    if "offsets" in frame:
        yield Lines(stream.node, stream.pending_lines)
        stream.offsets, stream.pending_lines = frame["offsets"], []
    if "past" in frame:
        yield BacklogRead(stream.node)
    if "end" in frame:
        stream.done = True
        now = time.time()
        yield NodeEnded(status.from_answer(stream.node, frame["end"], now, now))
    problem = problem_in(frame)
    if problem is not None:
        stream.done = True
        yield NodeEnded(status.NodeStatus(stream.node, "unreachable", problem.message))

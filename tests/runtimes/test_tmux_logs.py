"""Log streams of the tmux runtime: the events of frames."""

from __future__ import annotations

from torchfab.core.errors import HostError
from torchfab.core.events import BacklogRead, ContactLost, Lines, NodeEnded
from torchfab.core.specs import Node
from torchfab.runtimes.tmux_logs import _NodeLogs
from torchfab.transport.messages import Problem
from torchfab.transport.messages.job import LogLine, LogsFrame

NODE = Node(0, "node0")


def frame(*texts: str, offset: int = 0, past: bool = False) -> LogsFrame:
    lines: list[LogLine] = [(0, 1.0, text) for text in texts]
    return LogsFrame(lines=lines, offsets={"log": offset} if offset else None, past=past)


def lines(*texts: str) -> Lines:
    return Lines(NODE, [(0, 1.0, text) for text in texts])


def test_lines_of_frames_that_arrive_together_are_one_event() -> None:
    logs = _NodeLogs(NODE)
    assert list(logs.events([frame("a"), frame("b", offset=1), frame("c"), frame(offset=2)])) == [lines("a", "b", "c")]
    assert logs.offsets == {"log": 2}


def test_other_events_keep_their_place_among_the_lines() -> None:
    first, second = frame("a", offset=1), frame("b", offset=2)
    assert list(_NodeLogs(NODE).events([first, frame(past=True), second])) == [
        lines("a"),
        BacklogRead(NODE),
        lines("b"),
    ]


def test_lines_are_dropped_when_the_connection_is_lost_before_their_offsets() -> None:
    logs, error = _NodeLogs(NODE), HostError("lost")
    assert list(logs.events([frame("a", offset=1), frame("b")])) == [lines("a")]
    assert list(logs.events(error)) == [ContactLost(NODE, error)]
    assert list(logs.events([frame("b", offset=2)])) == [lines("b")]


def test_nothing_is_read_after_the_end() -> None:
    logs = _NodeLogs(NODE)
    end = LogsFrame(problems=[Problem("no such folder", "")])
    first, ended = logs.events([frame("a", offset=1), end, frame("b", offset=2)])
    assert first == lines("a")
    assert isinstance(ended, NodeEnded)
    assert logs.is_done

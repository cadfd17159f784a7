"""Run one command on many nodes at once, and collect its output; Ctrl-C ends it on all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import field

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError, TorchfabError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.transport.messages.run import EndRunRequest, RunEnd, RunFrame, RunRequest
from torchfab.transport.session import NodeError, Session
from torchfab.transport.session_pool import SessionPool, as_error

_POLL_S = 0.02
_END_S = 10.0  # the node ends the command within 4 s


@dataclass
class HostRun:
    """The command on one node.

    Parameters
    ----------
    node : Node
        The node.
    out, err : list of str
        The lines of its output streams.
    end : RunEnd, optional
        How it ended; None while it runs.
    error : TorchfabError, optional
        Why it did not start, or why its outcome is unknown.
    """

    node: Node
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)
    end: RunEnd | None = None
    error: TorchfabError | None = None

    @property
    def is_over(self) -> bool:
        """Whether the command has ended or failed."""
        return self.end is not None or self.error is not None

    def add(self, frame: RunFrame) -> None:
        """Add the content of a frame.

        Parameters
        ----------
        frame : RunFrame
            The frame that the node sent.
        """
        self.out += frame.out
        self.err += frame.err
        self.end = frame.end or self.end
        if frame.problems:
            self.error = NodeError(frame.problems)


class RunsInterrupted(Exception):
    """Ctrl-C: the command was ended.

    Parameters
    ----------
    runs : sequence of HostRun
        The output that had arrived by then, and how the command ended.
    """

    def __init__(self, runs: Sequence[HostRun]) -> None:
        super().__init__()
        self.runs = tuple(runs)


def run_on_all(
    nodes: Sequence[Node],
    settings: ConnectionSettings,
    request: Callable[[Node], RunRequest],
    progress: Callable[[int], None],
) -> tuple[HostRun, ...]:
    """Run a command on all nodes.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes.
    settings : ConnectionSettings
        How to reach them.
    request : callable
        Returns the request for a node.
    progress : callable
        Called with the number of nodes on which the command has ended, whenever it changes.

    Returns
    -------
    tuple of HostRun
        In the order of the nodes.

    Raises
    ------
    RunsInterrupted
        Ctrl-C; a second one while the commands end raises KeyboardInterrupt.
    """
    runs = {node.rank: HostRun(node) for node in nodes}
    running: dict[int, Session] = {}
    interrupted = threading.Event()

    def start(node: Node, session: Session) -> None:
        if not interrupted.is_set():
            running[node.rank] = session
            session.post(request(node))

    with SessionPool(nodes, settings) as sessions:
        try:
            for node, error in sessions.map(start):
                runs[node.rank].error = error
                progress(_over(runs.values()))
            _collect(runs, running, progress)
        except KeyboardInterrupt:
            interrupted.set()
            _end(runs, running)
            raise RunsInterrupted(tuple(runs.values())) from None
    return tuple(runs.values())


def _over(runs: Iterable[HostRun]) -> int:
    return sum(run.is_over for run in runs)


def _collect(
    runs: dict[int, HostRun], running: dict[int, Session], progress: Callable[[int], None], within_s: float = 0.0
) -> None:
    """Read from all nodes until the command has ended everywhere, or until the time limit; 0: no limit."""
    started = time.monotonic()
    while (left := [rank for rank in running if not runs[rank].is_over]) and (
        not within_s or time.monotonic() - started < within_s
    ):
        frames = sum(_read(runs[rank], running[rank]) for rank in left)
        if any(runs[rank].is_over for rank in left):
            progress(_over(runs.values()))
        if not frames:
            time.sleep(_POLL_S)


def _read(run: HostRun, session: Session) -> int:
    """Add the frames that have arrived from a node; return their number."""
    try:
        frames = session.read_frames()
    except Exception as error:
        run.error = as_error(error)
        return 0
    for frame in frames:
        run.add(frame)
    return len(frames)


def _end(runs: dict[int, HostRun], running: dict[int, Session]) -> None:
    """End the command on all nodes where it runs; if a node does not confirm that, its run gets an error."""
    running = dict(running)  # a thread that is still connecting may add to it
    for rank, session in running.items():
        if not runs[rank].is_over:
            try:
                session.post(EndRunRequest())
            except HostError as error:
                runs[rank].error = error
    _collect(runs, running, lambda done: None, _END_S)
    for rank in running:
        if not runs[rank].is_over:
            fix = "list the processes there: fab run -- ps -ef"
            runs[rank].error = HostError(f"it did not confirm within {_END_S:g} s that the command was ended", fix)

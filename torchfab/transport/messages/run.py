"""Messages about a command that runs on a node and is not part of a job."""

from __future__ import annotations

from msgspec import Struct

from torchfab.core.bounded_types import ExitCode, Number, Whole
from torchfab.transport.messages import Problem, Request


class RunEnd(Struct, frozen=True, kw_only=True):
    """How a command ended.

    Parameters
    ----------
    code : int, optional
        Its exit code, -n for signal n; None if it still runs.
    timed_out, stopped : bool
        Whether it was ended: because of its time limit, or at the request of the launch machine.
    seconds : float
        Duration, in seconds.
    dropped : int
        How many bytes of its output were left out.
    left : list of str
        Its processes that could not be ended.
    """

    code: ExitCode | None
    timed_out: bool
    stopped: bool
    seconds: Number
    dropped: Whole
    left: list[str]


class RunFrame(Struct, frozen=True, kw_only=True):
    """Lines of both output streams of a command; the last frame has its end, or why it did not start."""

    out: list[str] = []
    err: list[str] = []
    end: RunEnd | None = None
    problems: list[Problem] = []


class RunRequest(Request[RunFrame], frozen=True, tag="run"):
    """Run a command and stream its output.

    Parameters
    ----------
    argv : list of str
        The command.
    workdir : str
        Absolute path of the folder to run in.
    path : list of str
        Folders to put in front of PATH.
    env : dict of str to str
        Variables to add to the node's own environment.
    timeout_s : float
        When to end it, in seconds; 0: never.
    most_bytes : int
        How many bytes of each output stream to send: half from its beginning, half from its end.
    setup : str
        Commands that the login shell runs first, for the environment that they set. Default: none.
    setup_timeout_s : float
        Time limit of these commands, in seconds.
    python_is_default : bool
        Whether a Python that they put first on PATH replaces `path`.
    """

    argv: list[str]
    workdir: str
    path: list[str]
    env: dict[str, str]
    timeout_s: float
    most_bytes: int
    setup: str = ""
    setup_timeout_s: float = 0.0
    python_is_default: bool = False
    ANSWER = RunFrame


class EndRunRequest(Request[RunFrame], frozen=True, tag="end_run"):
    """End the command that runs; its last frame comes before the answer, which is empty."""

    ANSWER = RunFrame

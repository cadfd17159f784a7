"""Messages about the results of a function that ran on all ranks."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from torchfab.core.bounded_types import Count, Time, Whole
from torchfab.transport.messages.job import JobRequest


class CallFailure(Struct, frozen=True, kw_only=True):
    """The exception that the function raised on a rank: time, type, message and traceback."""

    time: Time
    type: str
    message: str
    traceback: str


class RankOutcome(Struct, frozen=True, kw_only=True):
    """How the call ended on a rank.

    Parameters
    ----------
    rank : int
        The rank.
    files : dict of str to int
        Size in bytes of its pickled `result`, or of the exception (`failure`).
    failure : CallFailure, optional
        None if the function returned.
    """

    rank: Count
    files: dict[str, Whole]
    failure: CallFailure | None = None


class OutcomesAnswer(Struct, frozen=True):
    """How the call ended on the ranks of a node; ranks without a result are missing."""

    ranks: list[RankOutcome]


class OutcomesRequest(JobRequest[OutcomesAnswer], frozen=True, tag="call_outcomes"):
    """Query how a function call ended on a node."""

    ANSWER = OutcomesAnswer


class ChunkAnswer(Struct, frozen=True):
    """A part of a file, base64."""

    data: str


class ChunkRequest(JobRequest[ChunkAnswer], frozen=True, tag="call_chunk"):
    """Read a part of a pickled result or exception.

    Parameters
    ----------
    rank : int
        The rank that wrote it.
    kind : {"result", "failure"}
        Which of its files.
    offset : int
        Where to begin, in bytes.
    """

    rank: int
    kind: Literal["result", "failure"]
    offset: int
    ANSWER = ChunkAnswer

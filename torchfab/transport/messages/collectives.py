"""The collectives of a rank, as its probe reports them."""

from __future__ import annotations

from msgspec import Struct

from torchfab.core.bounded_types import Number, Time, Whole


class StackFrame(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A stack frame, as a row of values; `source` is the text of the line, if it is known."""

    function: str
    file: str
    line: Whole
    source: str = ""


class GroupReport(Struct, frozen=True, array_like=True):
    """A process group: name, description, ranks (empty: not known)."""

    name: str
    description: str
    ranks: list[Whole]


class CallReport(Struct, frozen=True, array_like=True):
    """A call of a collective; `frames` is its stack, the innermost frame first, if it is known."""

    group: str
    number: Whole
    operation: str
    input_sizes: list[list[Whole]]
    input_types: list[str]
    output_sizes: list[list[Whole]]
    output_types: list[str]
    has_ended: bool
    age_s: Number
    frames: list[StackFrame] = []


class RankCollectives(Struct, frozen=True, kw_only=True):
    """The latest collectives of a rank, as its probe reports them; see `torchfab.remote.job.recorder`.

    Parameters
    ----------
    time : float
        Time of the query, in seconds since the epoch.
    groups : list of GroupReport
        Its process groups.
    calls : list of CallReport
        Its latest calls.
    stack : list of StackFrame
        The stack of its main thread, the innermost frame first.
    """

    rank: Whole
    pid: Whole
    time: Time
    groups: list[GroupReport]
    calls: list[CallReport]
    stack: list[StackFrame] = []

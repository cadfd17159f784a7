"""Messages about the stacks of ranks."""

from __future__ import annotations

from msgspec import Struct

from torchfab.core.bounded_types import ExitCode, Number, Time, Whole
from torchfab.transport.messages.collectives import RankCollectives, StackFrame
from torchfab.transport.messages.job import JobRequest


class ThreadStack(Struct, frozen=True, kw_only=True):
    """The stack of a thread, the innermost frame first."""

    name: str
    active: bool
    frames: list[StackFrame]


class RankStackReport(Struct, frozen=True, kw_only=True):
    """The stacks of a rank, or why there are none; see `torchfab.remote.stacks.dump`."""

    process: str
    rank: Whole | None
    pid: Whole
    ended: Time | None
    code: ExitCode | None
    state: str = ""
    waits_in: str = ""
    by: str = ""
    problem: str = ""
    signal: str = ""
    cpu: Number = 0.0
    tracer: Whole = 0
    threads: list[ThreadStack] = []


class PtraceRights(Struct, frozen=True, kw_only=True):
    """The settings that decide whether py-spy may read the memory of a process."""

    ptrace_scope: str = ""
    cap_sys_ptrace: bool = False
    uid: Whole | None = None


class StacksAnswer(Struct, frozen=True, kw_only=True):
    """The stacks of the ranks on a node.

    Parameters
    ----------
    machine : str
        Its processor architecture.
    spy : str
        Path of py-spy; empty if there is none.
    wants : bool
        Whether the node first needs py-spy in `program`; nothing was done then.
    """

    machine: str
    spy: str = ""
    rights: PtraceRights = PtraceRights()
    ranks: list[RankStackReport] = []
    collectives: list[RankCollectives] = []
    wants: bool = False


class StacksRequest(JobRequest[StacksAnswer], frozen=True, tag="stacks"):
    """Get the stacks of the ranks on a node; see `torchfab.remote.stacks.dump.dump_node`.

    Parameters
    ----------
    program : str, optional
        py-spy itself; empty: not available; None: the node requests it if it needs it.
    """

    ranks: list[int] | None
    native: bool
    timeout_s: float
    signal: str
    program: str | None = None
    ANSWER = StacksAnswer

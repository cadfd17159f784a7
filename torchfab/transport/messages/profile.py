"""Messages about the profile of a job's ranks."""

from __future__ import annotations

from msgspec import Struct

from torchfab.core.bounded_types import Time, Whole
from torchfab.transport.messages import Done
from torchfab.transport.messages.calls import ChunkAnswer
from torchfab.transport.messages.job import JobRequest


class CalledCollective(Struct, frozen=True, array_like=True):
    """A collective, as the rank's flight recorder has it: group, number in the group, operation, when it was called."""

    group: str
    number: Whole
    operation: str
    time: Time


class RankProfileReport(Struct, frozen=True, kw_only=True):
    """The profile of a rank, or why there is none; see `torchfab.remote.job.profile`.

    Parameters
    ----------
    problem : str
        Why there is no trace; empty: there is one.
    begun, ended : float
        By the node's clock, in seconds since the epoch.
    size : int
        Size of the trace in bytes.
    devices : str
        CUDA_VISIBLE_DEVICES of the rank.
    calls : list of CalledCollective
        What its flight recorder still had, the oldest first.
    """

    rank: Whole
    pid: Whole
    problem: str = ""
    torch: str = ""
    begun: Time = 0.0
    ended: Time = 0.0
    size: Whole = 0
    devices: str = ""
    calls: list[CalledCollective] = []


class ProfileRequest(JobRequest[Done], frozen=True, tag="profile"):
    """Start to profile the ranks on a node.

    Parameters
    ----------
    ranks : list of int, optional
        Which ranks. None: all.
    start : float
        When to begin, by the node's clock, in seconds since the epoch.
    seconds, lead_s, timeout_s : float
        How long; how long until it begins, at most; and how long the ranks have to write their traces.
    """

    ranks: list[int] | None
    start: float
    seconds: float
    lead_s: float
    timeout_s: float
    ANSWER = Done


class ProfileResultAnswer(Struct, frozen=True, kw_only=True):
    """The profiles of the ranks on a node."""

    ranks: list[RankProfileReport]


class ProfileResultRequest(JobRequest[ProfileResultAnswer], frozen=True, tag="profile_result"):
    """Wait for the profiles of the ranks on a node."""

    ANSWER = ProfileResultAnswer


class TraceChunkRequest(JobRequest[ChunkAnswer], frozen=True, tag="profile_chunk"):
    """Read a part of the trace of a rank, from `offset` bytes on."""

    rank: int
    pid: int
    offset: int
    ANSWER = ChunkAnswer


class RemoveTracesRequest(JobRequest[Done], frozen=True, tag="profile_remove"):
    """Remove the traces of a job from a node."""

    ANSWER = Done

"""The values of a profile."""

from __future__ import annotations

from pathlib import Path

from torchfab.core.lazy_dataclass import dataclass
from torchfab.profiling.intervals import Interval


@dataclass(frozen=True)
class Call:
    """A collective that a rank has called, as its flight recorder has it.

    Parameters
    ----------
    group : str
        The process group.
    number : int
        Its number in the group, equal on all ranks.
    operation : str
        Such as `gloo:all_reduce`.
    time : float
        When it was called, by the node's clock, in seconds since the epoch.
    """

    group: str
    number: int
    operation: str
    time: float


@dataclass(frozen=True)
class RankProfile:
    """What was collected of a rank.

    Parameters
    ----------
    rank : int
        The rank.
    host : str
        Its node.
    path : Path
        Its trace, as torch wrote it.
    begun, ended : float
        By the node's clock, in seconds since the epoch.
    offset_s : float
        How far the node's clock is ahead of this machine's.
    calls : tuple of Call
        Its collectives, the oldest first.
    devices : str
        Its CUDA_VISIBLE_DEVICES. Default empty.
    """

    rank: int
    host: str
    path: Path
    begun: float
    ended: float
    offset_s: float
    calls: tuple[Call, ...] = ()
    devices: str = ""


@dataclass(frozen=True)
class Unprofiled:
    """A rank without a profile, and why."""

    rank: int
    host: str
    reason: str


@dataclass(frozen=True)
class Collective:
    """A collective on one rank.

    Parameters
    ----------
    group, number, operation
        As in `Call`; they name the same collective on all ranks.
    tid : int
        The thread or the stream of the GPU.
    begin, end : float
        In microseconds of the merged trace.
    cut : bool
        It still ran when the profile ended: its end is that of the profile. Default False.
    """

    group: str
    number: int
    operation: str
    tid: int
    begin: float
    end: float
    cut: bool = False


@dataclass(frozen=True)
class RankTimes:
    """Where the time of a rank went, in microseconds of the merged trace; all intervals are disjoint sets.

    Parameters
    ----------
    rank : int
        The rank.
    name : str
        `rank 3 on node1 (gpu 3)`.
    begin, end : float
        The window in which it was profiled.
    compute, communication, data : tuple of (float, float)
        Operators or kernels of the GPU; collectives; waiting for the DataLoader.
    collectives : tuple of Collective
        In rising order of their begin.
    """

    rank: int
    name: str
    begin: float
    end: float
    compute: tuple[Interval, ...]
    communication: tuple[Interval, ...]
    data: tuple[Interval, ...]
    collectives: tuple[Collective, ...]


@dataclass(frozen=True)
class JobProfile:
    """The profile of a job.

    Parameters
    ----------
    ranks : tuple of RankProfile
        By rank.
    missing : tuple of Unprofiled
        Ranks without a trace.
    clock_s : float
        How far the clocks of two nodes may still be apart after the correction, in seconds.
    failed : dict of str to str
        Why nodes did not answer.
    """

    ranks: tuple[RankProfile, ...]
    missing: tuple[Unprofiled, ...]
    clock_s: float
    failed: dict[str, str]

"""Messages about the load of nodes."""

from __future__ import annotations

from msgspec import Struct

from torchfab.core.bounded_types import Number, Time, Whole
from torchfab.core.status import StatusReport
from torchfab.transport.messages import Problem, Request
from torchfab.transport.messages.job import JobRequest


class GpuLoadProcess(Struct, frozen=True, kw_only=True):
    """A process on a GPU; memory in MiB."""

    pid: Whole
    memory: Number | None
    name: str


class GpuLoad(Struct, frozen=True, kw_only=True):
    """The load of a GPU: percent, watts, MiB, degrees Celsius; None for values that are not reported."""

    index: Whole
    name: str
    sick: str
    utilization: Number | None
    power: Number | None
    power_limit: Number | None
    memory: Number | None
    memory_total: Number | None
    temperature: Number | None
    processes: list[GpuLoadProcess]
    uuid: str = ""


class HeldGpu(Struct, frozen=True, kw_only=True):
    """A GPU that holds memory of an earlier attempt, in MiB, and the process that holds it."""

    index: Whole
    memory_mib: Number
    by: str


class GpuMemoryAnswer(Struct, frozen=True):
    """The GPUs that the next attempt of a job must wait for."""

    held: list[HeldGpu]


class GpuMemoryRequest(Request[GpuMemoryAnswer], frozen=True, tag="gpu_memory"):
    """Find the GPUs that hold memory of an earlier attempt of a job; see `torchfab.remote.host.gpu_memory`."""

    since: float
    devices: list[str]
    name: str
    ANSWER = GpuMemoryAnswer


class JobLoad(Struct, frozen=True, kw_only=True):
    """The status of a job on a node, and the rate at which it logs steps and lines."""

    status: StatusReport
    step: Whole | None
    steps: Whole | None
    steps_s: Number | None
    lines_s: Number | None
    silent_s: Number | None


class NodeLoad(Struct, frozen=True, kw_only=True):
    """The load of a node: `cpu` in percent, memory in bytes, rates in bytes per second."""

    cpu: Number
    cpus: Whole
    load: Number
    memory: Number
    memory_total: Number
    received: Number
    sent: Number
    disk_read: Number
    disk_written: Number
    gpus: list[GpuLoad]
    problem: str
    job: JobLoad | None
    time: Time = 0.0


class LoadFrame(Struct, frozen=True, kw_only=True):
    """A frame of the load of a node."""

    load: NodeLoad | None = None
    problems: list[Problem] = []


class LoadRequest(Request[LoadFrame], frozen=True, tag="load"):
    """Stream the load of a node, and of a job there."""

    interval_s: float
    ANSWER = LoadFrame


class JobLoadRequest(JobRequest[LoadFrame], frozen=True, tag="load"):
    """Stream the load of a node and of a job there."""

    interval_s: float
    ANSWER = LoadFrame

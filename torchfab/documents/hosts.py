"""The documents of hosts (`top`, `doctor`, `network`, `run`, `sync`, `env push`, `trust`) and of the project."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from torchfab.core.status import State
from torchfab.documents.base import Document, Failed, Host, Part, Seconds, Text, Time, about
from torchfab.documents.jobs import JobName, Stall
from torchfab.network.report import Interface
from torchfab.transport.messages.doctor import ConnectivityAnswer, ProbeAnswer

Bytes: TypeAlias = Annotated[float | None, about("Bytes; null if not known.")]
Rate: TypeAlias = Annotated[float | None, about("Bytes per second; null if not known.")]

# ---- top


class GpuProcess(Part, frozen=True):
    """A process on a GPU."""

    pid: int
    name: str
    memory_bytes: Bytes


class Gpu(Part, frozen=True):
    """A GPU. Values that it does not report are null."""

    index: int
    uuid: str
    name: str
    sick: Annotated[str, about("Its fault; empty if it has none.")]
    mark: Annotated[str, about("The remark in the last column of `fab top`; empty if there is none.")]
    utilization_percent: float | None
    power_w: float | None
    power_limit_w: float | None
    memory_bytes: Bytes
    memory_total_bytes: Bytes
    temperature_c: float | None
    processes: list[GpuProcess]


class HostLoad(Part, frozen=True):
    """The load of a host. Before its first answer, and while it is out of reach, all values but these are null."""

    host: Host
    error: Annotated[str | None, about("Why there are no values.")]
    time: Annotated[float | None, about("When it was measured, by the host's clock: seconds since 1970-01-01 UTC.")]
    cpus: int | None
    cpu_percent: Annotated[float | None, about("Use of all CPUs together, 0 to 100.")]
    load: Annotated[float | None, about("Load average of the last minute.")]
    memory_bytes: Bytes
    memory_total_bytes: Bytes
    received_bytes_s: Rate
    sent_bytes_s: Rate
    disk_read_bytes_s: Rate
    disk_written_bytes_s: Rate
    problem: Annotated[str | None, about("Why the GPUs could not be measured; empty if they were.")]
    gpus: list[Gpu]


class TopJob(Part, frozen=True):
    """The job, and its progress as its log lines tell it."""

    job: JobName
    state: State
    stall: Stall
    step: Annotated[int | None, about("The last step that was logged.")]
    steps: Annotated[int | None, about("The last step of the training, if a log line tells it.")]
    steps_s: Annotated[float | None, about("Steps per second.")]
    lines_s: Annotated[float | None, about("Log lines per second.")]


class Top(Document, frozen=True):
    """The load of hosts at one moment."""

    time: Time
    job: Annotated[TopJob | None, about("Null if no job is shown.")]
    nodes: list[HostLoad]


# ---- doctor


class Finding(Part, frozen=True):
    """A problem."""

    kind: Annotated[str, about("Identifier of the check: `kernel-differs`.")]
    severity: Annotated[str, about("`error` or `warning`.")]
    hosts: list[str]
    what: Text
    expected: Text
    found: Text
    fix: Text


class DoctorNode(Part, frozen=True):
    """A host that was checked."""

    host: Host
    node_rank: int
    ok: Annotated[bool, about("Whether it has no error.")]
    error: Annotated[str | None, about("Why it could not be checked.")]
    connect_s: Annotated[float | None, about("Duration of the connection's start, in seconds.")]
    clock_ahead_s: Annotated[float | None, about("Seconds by which its clock is ahead of this machine's.")]
    clock_within_s: Annotated[float | None, about("Uncertainty of `clock_ahead_s`, in seconds.")]
    facts: Annotated[
        ProbeAnswer, about("What the host reported. Checks that failed are left out, and named in `failed`.")
    ]
    to_node_0: Annotated[ConnectivityAnswer | None, about("How it reaches node 0; null if that was not tested.")]


class Doctor(Document, frozen=True):
    """The problems of hosts."""

    ok: Annotated[bool, about("Whether there is no error.")]
    duration_s: Seconds
    findings: list[Finding]
    nodes: list[DoctorNode]


# ---- network


class SizeResult(Part, frozen=True):
    """The all-reduce of one size, over all ranks."""

    bytes: int
    count: Annotated[int, about("How often it was measured.")]
    p50_s: Annotated[float, about("Median duration, in seconds.")]
    max_s: Annotated[float, about("Longest duration, in seconds.")]
    algbw_gbit: Annotated[float, about("Size by duration, in Gbit/s.")]
    busbw_gbit: Annotated[float, about("Bus bandwidth as nccl-tests define it, in Gbit/s.")]


class Pair(Part, frozen=True):
    """Two hosts."""

    hosts: list[str]
    busbw_gbit: Annotated[float, about("Gbit/s.")]
    latency_s: Seconds


class Slow(Part, frozen=True):
    """Slow hosts and links."""

    usual_gbit: Annotated[float | None, about("The typical bandwidth of a pair, in Gbit/s.")]
    nodes: list[str]
    links: list[list[str]]


class Network(Document, frozen=True):
    """The result of a measurement."""

    hosts: list[str]
    ranks: int
    backend: str
    torch: str
    interfaces: Annotated[list[Interface], about("The network interface of each host, and its speed in Gbit/s.")]
    settings: dict[str, str]
    sizes: list[SizeResult]
    pairs: list[Pair]
    slow: Slow


# ---- run, sync, env, trust


class CommandResult(Part, frozen=True):
    """A command on a host."""

    host: Host
    exit_code: int
    signal: Annotated[int | None, about("Number of the signal that ended it.")]
    timed_out: bool
    duration_s: Seconds
    stdout: str
    stderr: str
    left_out_bytes: Annotated[int, about("Bytes of output that were too much to keep.")]


class Run(Document, frozen=True):
    """The results of a command."""

    hosts: list[CommandResult]
    failed: Failed


class SyncedHost(Part, frozen=True):
    """A host that has the files."""

    host: Host
    shared: Annotated[bool, about("Whether it shares the directory with this machine: nothing was copied.")]
    files_copied: int
    bytes_copied: int
    checked: Annotated[int, about("Number of files that were compared.")]
    missing: int
    differing: int
    names: Annotated[list[str], about("Files that are missing or differ.")]


class Sync(Document, frozen=True):
    """The result of a copy."""

    files: Annotated[int, about("Number of files to copy.")]
    hosts: list[SyncedHost]
    failed: Failed


class Environment(Part, frozen=True):
    """The environment on a host."""

    host: Host
    path: str
    made: Annotated[bool, about("Whether it was created now; false if it was up to date.")]
    tool: Annotated[str, about("`uv` or `pip`.")]
    python: Annotated[str, about("Version of its Python.")]
    duration_s: Seconds


class EnvPush(Document, frozen=True):
    """The environments."""

    source: Annotated[str, about("The file that lists the packages.")]
    digest: str
    hosts: list[Environment]


class Trust(Document, frozen=True):
    """The key of a host."""

    host: Host
    standing: Annotated[str, about("`known`, `new`, `changed`, `silent`, ...")]
    key: Annotated[str, about("Fingerprint; empty if the host presented no key.")]
    trusted: bool
    problem: Annotated[str | None, about("Why it is not trusted.")]


# ---- the project


class Lemon(Part, frozen=True):
    """A host that supervised launches leave out."""

    host: Host
    reason: Text
    time: Time
    job: JobName


class Lemons(Document, frozen=True):
    """The hosts that supervised launches leave out."""

    lemons: list[Lemon]


class Setting(Part, frozen=True):
    """A setting."""

    value: Any
    origin: Annotated[str, about("`default`, file:line, environment variable, or flag.")]


class Config(Document, frozen=True):
    """The settings in force."""

    project: Annotated[str, about("The folder of the project.")]
    settings: dict[str, Setting]

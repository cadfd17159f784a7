"""Messages of doctor: the clock, the probe of a node, and the path to node 0."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from torchfab.core.bounded_types import Number, Port, Time, Whole
from torchfab.transport.messages import Request
from torchfab.transport.messages.launch import FileSystem, GpuProcess, MachineIdentity, PackagesMark, SetupFacts

# Empty if it is unknown: in a union with a literal text, msgspec applies the pattern to both.
Version: TypeAlias = Annotated[str, Meta(pattern=r"^([0-9]{1,6}(\.[0-9]{1,6}){0,4})?\Z")]


def _check_addresses(addresses: Sequence[str]) -> None:
    """Raise ValueError, which msgspec reports as malformed, unless all are IP addresses, with or without a zone."""
    for address in addresses:
        ip_address(address.partition("%")[0])


class ClockAnswer(Struct, frozen=True):
    """The time by the node's clock, in seconds since the epoch."""

    time: Time


class ClockRequest(Request[ClockAnswer], frozen=True, tag="clock"):
    """Read a node's clock."""

    ANSWER = ClockAnswer


class Machine(Struct, frozen=True, kw_only=True):
    """The identity of a machine; `network` is that of its network namespace."""

    hostname: str
    network: str
    own_addresses: list[str]
    infiniband: bool
    boot_id: str = ""
    identity: MachineIdentity | None = None
    kernel: str = ""
    time: Time = 0.0

    def __post_init__(self) -> None:
        _check_addresses(self.own_addresses)


class PythonEnvironment(Struct, frozen=True, kw_only=True):
    """Path of the training interpreter and versions of its packages, or the problem with it."""

    problem: str = ""
    python: str = ""
    path: str = ""
    torch: str = ""
    cuda: str = ""
    nccl: str = ""
    packages: PackagesMark | None = None


class SetupCheck(Struct, frozen=True, kw_only=True):
    """The effect of the `--setup` commands, or why they failed, and how to fix it."""

    facts: SetupFacts | None = None
    problem: str = ""
    fix: str = ""


class GpuHealth(Struct, frozen=True, kw_only=True):
    """The health of a GPU: its faults (`sick`), how to repair them, and why it is slowed down; memory in MiB."""

    bus: str
    name: str
    uuid: str
    sick: str
    repair: str
    ecc: Whole | None
    mig: bool
    slowdown: list[str]
    processes: list[GpuProcess]
    memory_mib: Whole | None = None


class GpusHealth(Struct, frozen=True, kw_only=True):
    """The GPUs of a machine.

    Parameters
    ----------
    devices : int
        Number of NVIDIA devices on the PCI bus.
    missing : bool
        Whether nvidia-smi is not installed.
    xids : list of str
        Xid errors of the kernel's log.
    xids_unread : str
        Why the kernel's log cannot be read; empty if it can.
    """

    devices: Whole
    gpus: list[GpuHealth]
    problem: str = ""
    driver: str = ""
    cuda: str = ""
    missing: bool = False
    xids: list[str] = []
    xids_unread: str = ""


class TmuxVersion(Struct, frozen=True, kw_only=True):
    """The version of tmux and the oldest that works, or the problem with it."""

    version: Version = ""
    oldest: Version = ""
    problem: str = ""

    def __post_init__(self) -> None:
        if not self.problem and not (self.version and self.oldest):
            raise ValueError("neither versions nor a problem")


class Limits(Struct, frozen=True, kw_only=True):
    """Soft limits; None for unlimited. `locked` in bytes."""

    files: Whole | None
    locked: Whole | None
    processes: Whole | None


class NetworkInterface(Struct, frozen=True, kw_only=True):
    """A network interface."""

    name: str
    up: bool
    mtu: Whole | None
    addresses: list[str]


class RunningJob(Struct, frozen=True, kw_only=True):
    """Processes of a torchfab job that run on a machine."""

    job_id: str
    processes: Whole
    supervised: bool
    example: str


class UnusedMemory(Struct, frozen=True, kw_only=True):
    """Files in shared memory that no process uses, of one user."""

    user: str
    files: Whole
    bytes: Whole


class CodeDigest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The digest of a working directory; without values if the directory does not exist.

    Parameters
    ----------
    by : str
        How the files were found: list, git or walk.
    files : int, optional
        Number of files.
    digest : str
        The digest of all files.
    whole : bool, optional
        False if the time limit did not suffice for all files.
    """

    by: str = ""
    files: Whole | None = None
    digest: str = ""
    whole: bool | None = None


class ListeningPort(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The port on which node 0 listens, with the greeting that it sends; or why it cannot listen."""

    port: Port | None = None
    greeting: str = ""
    problem: str = ""


class ProbeAnswer(Struct, frozen=True, kw_only=True):
    """The results of a node's checks of itself; a check that raised an exception is None, and named in `failed`."""

    machine: Machine | None = None
    setup: SetupCheck | None = None
    python: PythonEnvironment | None = None
    gpus: GpusHealth | None = None
    tmux: TmuxVersion | None = None
    places: dict[str, FileSystem] | None = None
    limits: Limits | None = None
    interfaces: list[NetworkInterface] | None = None
    environment: dict[str, str] | None = None
    jobs: list[RunningJob] | None = None
    unused_memory: list[UnusedMemory] | None = None
    code: CodeDigest | None = None
    port: ListeningPort | None = None
    failed: dict[str, str] = {}


class ProbeRequest(Request[ProbeAnswer], frozen=True, tag="probe"):
    """Check everything on a node that a job depends on; see `torchfab.remote.host.probe.collect`."""

    python: str
    python_timeout_s: float
    python_path: str | None
    workdir: str
    node_dir: str
    names: list[str] | None
    variables: list[str]
    token: str
    port: int | None
    setup: str = ""
    setup_timeout_s: float = 0
    python_is_default: bool = False
    ANSWER = ProbeAnswer


class ConnectionTest(Struct, frozen=True, kw_only=True):
    """The outcome of a connection to node 0."""

    outcome: Literal["connected", "refused", "timeout", "rejected", "stranger", "failed"]
    why: str
    address: str
    seconds: Number


class ConnectivityAnswer(Struct, frozen=True, kw_only=True):
    """How a node reaches node 0; see `torchfab.remote.host.connectivity`."""

    addresses: list[str]
    resolve_s: Number = 0.0
    source: str = ""
    connection: ConnectionTest | None = None
    sees: dict[str, bool]
    files: dict[str, str] | None = None

    def __post_init__(self) -> None:
        _check_addresses(self.addresses)


class ConnectivityRequest(Request[ConnectivityAnswer], frozen=True, tag="connectivity"):
    """Test how a node reaches node 0."""

    address: str
    port: int | None
    greeting: str
    timeout_s: float
    tokens: dict[str, str]
    files: bool
    workdir: str
    names: list[str] | None
    ANSWER = ConnectivityAnswer

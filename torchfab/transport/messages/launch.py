"""Messages of a launch: prepare, start, commit, roll back."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from torchfab.core.bounded_types import Count, Number, Port, Time, Whole
from torchfab.transport.messages import Request


class FileSystem(Struct, frozen=True, kw_only=True):
    """A directory and the file system that holds it; sizes in bytes.

    Parameters
    ----------
    at : str
        The directory that was measured: the nearest one above `path` that exists.
    token : str
        Path of a file that the node created there, by which other nodes detect a shared directory; empty for none.
    problem : str
        Why the directory cannot be used; empty if it can.
    """

    path: str
    filesystem: str
    exists: bool
    enterable: bool
    free: Number
    size: Number
    free_files: Number | None
    at: str = ""
    token: str = ""
    problem: str = ""


class GpuProcess(Struct, frozen=True, kw_only=True):
    """A process that uses a GPU; memory in MiB."""

    pid: Whole | None
    name: str = ""
    memory_mib: Whole | None = None


class QuickProbe(Struct, frozen=True, kw_only=True):
    """The results of the quick checks in phase one, from which warnings are made.

    Parameters
    ----------
    disk : FileSystem, optional
        The file system of the jobs' folders.
    script : str
        Digest of the script; empty for none.
    holders : list of GpuProcess
        Processes that use a GPU.
    launcher_variables : list of str
        Names of variables of the login environment that launchers set themselves; ranks do not inherit them.
    """

    disk: FileSystem | None = None
    script: str = ""
    holders: list[GpuProcess] = []
    launcher_variables: list[str] = []


class MachineIdentity(Struct, frozen=True, kw_only=True):
    """The identity of a node's machine; see `torchfab.remote.host.identity`.

    Parameters
    ----------
    id : str
        Equal for two sessions on one machine.
    ssh_port : int, optional
        The sshd port through which the session was opened.
    """

    id: str
    ssh_port: Port | None = None


class PackagesMark(Struct, frozen=True, kw_only=True):
    """The list of packages from which `env push` created the environment of an interpreter.

    Parameters
    ----------
    digest, source : str
        Digest and name of the list.
    """

    digest: str
    source: str


class SetupFacts(Struct, frozen=True, kw_only=True):
    """The effect of the `--setup` commands on a node.

    Parameters
    ----------
    shell : str
        The login shell that ran them.
    changed, removed : tuple of str
        Names of the environment variables that they set or changed, and of those that they removed.
    python : str
        The interpreter that the job uses because they put it first on PATH; empty for the job's own.
    """

    shell: str
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    python: str = ""


class NodeFacts(Struct, frozen=True, kw_only=True):
    """The facts about a node that a plan needs; see `torchfab.core.specs.Facts`."""

    folder: str
    hostname: str
    machine: MachineIdentity | None = None
    gpus: Annotated[int, Meta(ge=0, le=1024)]
    cpus: Count
    time: Time
    port: Port | None
    is_root: bool
    versions: dict[str, str]
    python: str = ""
    glance: QuickProbe = QuickProbe()
    setup: SetupFacts | None = None
    packages: PackagesMark | None = None


class PrepareAnswer(Struct, frozen=True):
    """The answer of phase one."""

    facts: NodeFacts


class ProgramSpec(Struct, frozen=True, kw_only=True):
    """A program that must be installed; see `torchfab.core.specs.Program`."""

    names: tuple[str, ...]
    install: str
    version_flag: str
    on_head_only: bool


class PrepareRequest(Request[PrepareAnswer], frozen=True, tag="prepare"):
    """Phase one: check the node, create the job's folder, and reserve a port. Nothing is started.

    Parameters
    ----------
    patience_s : int
        The node rolls back when no further request comes for this many seconds.
    write : bool
        False for a dry run: facts and checks only.
    """

    job_id: str
    session: str
    node_rank: int
    node_dir: str
    workdir: str
    python: str
    script: str | None
    modules: list[str]
    python_path: str | None
    installs: dict[str, str]
    programs: list[ProgramSpec]
    master_addr: str
    one_machine: bool
    peers: list[str]
    port: int | None
    write: bool
    patience_s: int
    python_timeout_s: float
    program: str = ""
    parser: tuple[str, ...] = ()
    master_is_given: bool = False
    setup: str = ""
    setup_timeout_s: float = 0
    python_is_default: bool = False
    ANSWER = PrepareAnswer


class ProcessSpec(Struct, frozen=True, kw_only=True):
    """A process to start; see `torchfab.core.specs.Process`."""

    name: str
    argv: list[str]
    env: dict[str, str]
    secrets: dict[str, str] | None
    cwd: str
    rank: int | None
    rank_logs: str
    folders: list[str]
    files: dict[str, str]
    path: list[str]
    python_path: list[str] = []
    after: str = ""
    after_timeout_s: float = 0


class BeforeAnswer(Struct, frozen=True):
    """The hook ended with exit code 0."""


class BeforeRequest(Request[BeforeAnswer], frozen=True, tag="before"):
    """Run `--before` on a prepared node, in the environment of one of its processes.

    Parameters
    ----------
    timeout_s : float
        Time limit, in seconds.
    """

    command: str
    timeout_s: float
    mask_key: str
    secret_patterns: list[str]
    process: ProcessSpec
    ANSWER = BeforeAnswer


class StartAnswer(Struct, frozen=True):
    """Names of the processes that were started, or released."""

    started: list[str]


class StartRequest(Request[StartAnswer], frozen=True, tag="start"):
    """Phase two: start the supervisors of all processes, which wait for the commit."""

    session: str
    mask_key: str
    grace_s: float
    start_timeout_s: float
    secret_patterns: list[str]
    processes: list[ProcessSpec]
    ANSWER = StartAnswer


class CommitAnswer(Struct, frozen=True):
    """Names of the processes that were released."""

    started: list[str] = []


class CommitRequest(Request[CommitAnswer], frozen=True, tag="commit"):
    """Release the started supervisors, and keep the job's folder when the connection ends."""

    ANSWER = CommitAnswer


class RankEnds(Struct, frozen=True, kw_only=True):
    """How ranks ended after a stop.

    Parameters
    ----------
    ended, killed : int
        Number of ranks that ended by themselves, and of those that were killed after the grace period.
    seconds : float
        Time that the slowest of the former took, in seconds.
    unfinished : int
        How many of the killed ranks were still in their signal handler.
    writing : list of str
        The files that these ranks had open for writing.
    """

    ended: Number = 0
    killed: Number = 0
    seconds: Number = 0
    unfinished: Number = 0
    writing: list[str] = []


class Cleared(Struct, frozen=True, kw_only=True):
    """The files and folders that a job left behind outside its folder and that were removed.

    Parameters
    ----------
    files, bytes : int
        Number and size of files in shared memory.
    folders : int
        Number of temporary folders.
    """

    files: Number = 0
    bytes: Number = 0
    folders: Number = 0


class StopReport(Struct, frozen=True, kw_only=True):
    """How processes were stopped.

    Parameters
    ----------
    asked : int
        Number of processes that ran.
    killed, left : list of str
        Descriptions of those that had to be killed, and of those that still run.
    seconds : float
        Duration, in seconds.
    rank_ends : RankEnds
        How its ranks ended.
    proof : {"", "cgroup", "proc"}
        The source that confirms that no other process is left; empty: not reported.
    cleared : Cleared
        The removed files and folders outside the job's folder.
    """

    asked: Number
    killed: list[str]
    left: list[str]
    seconds: Number
    rank_ends: RankEnds = RankEnds()
    proof: Literal["", "cgroup", "proc"] = ""
    cleared: Cleared = Cleared()


class RollbackRequest(Request[StopReport], frozen=True, tag="rollback"):
    """Undo both phases."""

    job_id: str
    node_dir: str
    node_rank: int
    session: str
    grace_s: float
    ANSWER = StopReport

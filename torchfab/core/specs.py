"""The values that flow through torchfab: Node, Slot, Job, Facts, Process, NodePlan, Plan. All frozen, all pure.

flags + fabric.yaml -> Job -> inventory (Nodes, Slots) -> Facts -> launcher.plan() -> Plan -> runtime
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torchfab.core.errors import JobNameError, UsageError

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True)
class Node:
    """One host of a job.

    Parameters
    ----------
    rank : int
        `node_rank`: its order in the hosts file, from 0.
    host : str
        Name or address, as ssh takes it; `localhost` is this machine, without ssh.
    user : str
        Login name; empty for ssh's own choice.
    port : int, optional
        Port of sshd; None for ssh's own choice.
    address : str
        How the other nodes reach it; empty for `host`.
    slots : int, optional
        How many processes to run there; None: as many as it has GPUs.
    gpus : tuple of str
        Which devices to use, by index or UUID; empty for all.
    origin : str
        Where it was written: `file:line`.
    """

    rank: int
    host: str
    user: str = ""
    port: int | None = None
    address: str = ""
    slots: int | None = None
    gpus: tuple[str, ...] = ()
    origin: str = ""

    @property
    def is_local(self) -> bool:
        """Whether it is this machine, reached without ssh."""
        return self.host == "localhost" and not self.user and self.port is None

    @property
    def label(self) -> str:
        """The node's name for people: the host, with the port where that tells nodes of one host apart."""
        host = f"[{self.host}]" if ":" in self.host and self.port else self.host
        return f"{host}:{self.port}" if self.port else host


@dataclass(frozen=True)
class Slot:
    """One line of `gpus`: one process on one GPU of one host.

    Parameters
    ----------
    rank : int
        Its order among all lines, from 0.
    node_rank : int
        Which node it runs on.
    local_rank : int
        Its order among the lines of that host.
    """

    rank: int
    node_rank: int
    local_rank: int


@dataclass(frozen=True)
class Job:
    """One launch of one script over some nodes: what the user asked for, with every default filled in.

    Parameters
    ----------
    name : str
        Unique on this launch machine: letters, digits, `-`, `_`, at most 63, beginning with a letter or digit.
    job_id : str
        The name and a random suffix: unique everywhere. Every process carries it as TORCHFAB_JOB_ID.
    launcher : str
        Name of the launcher.
    script : tuple of str
        The user's words after `--`: a script, or `-m` and a module, and its arguments.
    workdir : str
        Absolute path of the directory to run in, on every node.
    python : str
        Interpreter on the nodes, as a path or a name to be found there.
    master_addr : str
        Address of the rendezvous; empty for that of node 0.
    port : int
        Port of the rendezvous on node 0; 0 for a free one.
    env : Mapping of str to str
        Environment of the processes besides what torchfab sets: forwarded names and `--env`.
    secrets : Mapping of str to str
        The part of the environment whose values are never shown or stored.
    node_dir : str
        Where jobs' folders lie on a node: an absolute path, or one that begins with `~`.
    options : Mapping of str to Any
        What only this launcher knows: its own flags, checked.
    ssh_options : tuple of str
        Options of OpenSSH by which hosts are reached (`-F FILE`, `-i KEY`), for a head that reaches the nodes itself.
    mask_key : str
        The key of the digests by which secrets are hidden in logs, in hexadecimal; empty: they are not.
    """

    name: str
    job_id: str
    launcher: str
    script: tuple[str, ...]
    workdir: str
    python: str
    master_addr: str = ""
    port: int = 0
    env: Mapping[str, str] = field(default_factory=_nothing)
    secrets: Mapping[str, str] = field(default_factory=_nothing, repr=False)
    node_dir: str = "~/.torchfab"
    grace_s: float = 10.0
    options: Mapping[str, Any] = field(default_factory=_nothing)
    ssh_options: tuple[str, ...] = ()
    mask_key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        check_port(self.port)
        if not self.script:
            raise UsageError("no script was given", "write it after --, for example: -- train.py --batch-size 64")
        if not self.workdir.startswith("/"):
            raise UsageError(f"--workdir must be an absolute path, got {self.workdir!r}")

    @property
    def script_path(self) -> str | None:
        """The script's path as given; None where a module is run (`-m`)."""
        return None if self.script[0].startswith("-") else self.script[0]

    @property
    def module(self) -> str | None:
        """The outermost package of the module given with `-m`; None where a file is run."""
        return self.script[1].partition(".")[0] if self.script[0] == "-m" and len(self.script) > 1 else None


def check_name(name: str) -> None:
    """Raise JobNameError if `name` cannot name a job."""
    if not NAME_PATTERN.fullmatch(name):
        raise JobNameError(
            f"a job name has at most 63 letters, digits, '-' and '_', and begins with a letter or digit; got {name!r}",
            "choose another --name",
        )


def check_port(port: int) -> None:
    """Raise UsageError if `port` is no port (0: a free one)."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port is a number from 1 to 65535, or 0 for a free one; got {port}")


def node_dir(configured: str, workdir: str) -> str:
    """Return where jobs' folders lie on a node, from the setting: relative to the workdir, absolute, or with a ~."""
    path = str(configured)
    return path if path.startswith(("/", "~")) else f"{workdir.rstrip('/')}/{path}"


@dataclass(frozen=True)
class Facts:
    """What one node told in phase one, as far as a plan depends on it.

    Parameters
    ----------
    folder : str
        Absolute path of the job's folder on the node.
    gpus, cpus : int
        How many GPUs and CPU cores the job's processes may use there; 0 cpus: not asked.
    port : int, optional
        The port that is held for the rendezvous; on node 0 only.
    is_root : bool
        Whether the job runs as root there.
    versions : Mapping of str to str
        Version of each module and program of `Needs` that was found, empty where it does not tell; of alternatives, of
        all that are there.
    """

    folder: str
    gpus: int = 0
    cpus: int = 0
    port: int | None = None
    is_root: bool = False
    versions: Mapping[str, str] = field(default_factory=_nothing)


@dataclass(frozen=True)
class Process:
    """One process on one node: what a supervisor starts.

    Parameters
    ----------
    name : str
        Its name on the node, and that of its tmux window: `agent`, `rank-3`.
    argv : tuple of str
        The command.
    env : Mapping of str to str
        What is added to the node's own environment; secrets are not in it.
    rank : int, optional
        Its rank, if it is a rank itself.
    rank_logs : str
        Regular expression over paths relative to the process's folder: the log files of its ranks, with groups `rank`,
        or `local_rank` and `attempt`.
    folders : tuple of str
        Folders to make in the process's folder before it starts.
    files : Mapping of str to str
        Files to write into the process's folder before it starts: relative path, text. Readable by their owner only,
        and executable where the text begins with `#!`.
    path : tuple of str
        Folders whose programs are found before those of the node's own PATH.
    secrets : bool
        Whether it is given the secret part of the job's environment.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=_nothing)
    rank: int | None = None
    rank_logs: str = ""
    folders: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=_nothing)
    path: tuple[str, ...] = ()
    secrets: bool = True


@dataclass(frozen=True)
class NodePlan:
    """What runs on one node."""

    node: Node
    folder: str
    processes: tuple[Process, ...]


@dataclass(frozen=True)
class Plan:
    """All that a launch will do: the dry run prints it, a runtime acts on it, the record keeps it.

    Parameters
    ----------
    job : Job
        What was asked for.
    nodes : tuple of NodePlan
        What runs where, in the order of node ranks.
    world_size : int
        Number of ranks, as planned.
    chosen : Mapping of str to str
        Every default that torchfab chose, for people: `port` -> `41233 (free on node1)`.
    min_nodes : int
        With fewer nodes than this the job has failed; lower than the number of nodes for an elastic job.
    has_head : bool
        Whether a process on node 0 reaches the other nodes by itself, so that these must have started before it.
    """

    job: Job
    nodes: tuple[NodePlan, ...]
    world_size: int
    defaults: Mapping[str, str] = field(default_factory=_nothing)
    min_nodes: int = 0
    has_head: bool = False

    @property
    def start_order(self) -> tuple[tuple[NodePlan, ...], ...]:
        """The nodes in the order in which they are started: those of one wave at once."""
        waves = (self.nodes[1:], self.nodes[:1]) if self.has_head else (self.nodes,)
        return tuple(wave for wave in waves if wave)

    @property
    def session(self) -> str:
        """Prefix of the tmux sessions' names."""
        return self.job.name


def session_name(job_name: str, node_rank: int) -> str:
    """Return the name of a job's tmux session on a node; the rank is in it because two hosts can be one machine."""
    return f"{job_name}-node{node_rank}"


@dataclass(frozen=True)
class Submission:
    """A job as it is handed to a cluster's own scheduler: the dry run prints it, a runtime submits it.

    Parameters
    ----------
    job : Job
        What was asked for.
    text : str
        What is submitted, without secret values: an sbatch file, a manifest.
    nodes, world_size : int
        How many nodes and ranks are asked for.
    details : Mapping of str to Any
        What the runtime must know besides, as JSON: kept in the record.
    chosen : Mapping of str to str
        Every default that torchfab chose, for people.
    hosts : tuple of Node
        The nodes, where their names are known before the scheduler has placed them; else empty.
    """

    job: Job
    text: str
    nodes: int
    world_size: int
    details: Mapping[str, Any] = field(default_factory=_nothing)
    defaults: Mapping[str, str] = field(default_factory=_nothing)
    hosts: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Program:
    """A program that a launcher needs.

    Parameters
    ----------
    names : tuple of str
        Its names, or those of alternatives: one of them must be found on PATH, or beside the interpreter.
    install : str
        The command that installs it.
    version_flag : str
        What makes it tell its version.
    on_head_only : bool
        Whether node 0 alone needs it.
    """

    names: tuple[str, ...]
    install: str
    version_flag: str = "--version"
    on_head_only: bool = False


@dataclass(frozen=True)
class Requirements:
    """What a launcher needs on every node: phase one checks it.

    Parameters
    ----------
    modules : tuple of str
        Python modules that the interpreter must find.
    port : bool
        Whether node 0 must hold a port for the rendezvous.
    peers : bool
        Whether the nodes reach each other, not node 0 alone, by the addresses of the hosts file.
    programs : tuple of Program
        Programs that must be there.
    head_modules : tuple of str
        Those that it must find on node 0 besides.
    installs : Mapping of str to str
        How a module is installed, after `python -m pip install`; without an entry, by its own name.
    """

    modules: tuple[str, ...] = ("torch",)
    port: bool = True
    peers: bool = False
    programs: tuple[Program, ...] = ()
    head_modules: tuple[str, ...] = ()
    installs: Mapping[str, str] = field(default_factory=_nothing)

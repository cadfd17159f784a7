"""The central values of torchfab: Node, Slot, Job, Facts, Process, NodePlan, Plan. All are frozen dataclasses.

flags + fabric.yaml -> Job -> inventory (Nodes, Slots) -> Facts -> launcher.plan() -> Plan -> runtime
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from types import MappingProxyType
from typing import Any

from torchfab.core import command
from torchfab.core.errors import JobNameError, UsageError
from torchfab.core.lazy_dataclass import dataclass

FILES = "TORCHFAB_FILES"  # variable that names the folder of the job's files
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True)
class Node:
    """One host of a job.

    Parameters
    ----------
    rank : int
        `node_rank`: its position in the hosts file, from 0.
    host : str
        Name or address, as ssh takes it; `localhost` is this machine, reached without ssh.
    user : str
        Login name; empty for the one that ssh would use.
    port : int, optional
        Port of sshd; None for the one that ssh would use.
    address : str
        Address for connections from the other nodes; empty for `host`.
    slots : int, optional
        Number of processes to run there; None for one per GPU.
    gpus : tuple of str
        Devices to use, by index or UUID; empty for all.
    origin : str
        `file:line` of the hosts file.
    python, workdir : str
        Interpreter and working directory there; empty for the job's.
    env : tuple of pairs of str
        Variables of the processes there, in addition to the job's, which they override.
    labels : tuple of pairs of str
        Keys of the hosts file that torchfab does not use, with their values.
    node_dir : str
        Directory of the jobs' folders there, if it is inside `workdir`; empty for the job's.
    setup : str
        Commands for the login shell there; empty for the job's.
    """

    rank: int
    host: str
    user: str = ""
    port: int | None = None
    address: str = ""
    slots: int | None = None
    gpus: tuple[str, ...] = ()
    origin: str = ""
    python: str = ""
    workdir: str = ""
    env: tuple[tuple[str, str], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    node_dir: str = ""
    setup: str = ""

    @property
    def is_local(self) -> bool:
        """Whether the node is this machine, reached without ssh."""
        return self.host == "localhost" and not self.user and self.port is None

    @property
    def label(self) -> str:
        """The display name of the node: its host, with the port if one is given."""
        host = f"[{self.host}]" if ":" in self.host and self.port else self.host
        return f"{host}:{self.port}" if self.port else host

    def as_json(self) -> dict[str, Any]:
        """Return the node's fields for JSON.

        Returns
        -------
        dict
            The fields by name. Newer fields are omitted if empty, so that earlier versions of torchfab can read it.
        """
        newer = ("python", "workdir", "env", "labels", "node_dir", "setup")
        return {name: value for name, value in asdict(self).items() if value or name not in newer}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Node:
        """Build a node from the value of `as_json`, after a round trip through JSON.

        Parameters
        ----------
        values : Mapping of str to Any
            The fields by name.

        Returns
        -------
        Node

        Raises
        ------
        KeyError, TypeError, ValueError
            A value is missing or has the wrong type.
        """
        gpus = tuple(values["gpus"])
        names = [name for name in ("env", "labels") if name in values]  # most nodes have none
        pairs = {name: tuple((key, value) for key, value in values[name]) for name in names}
        return cls(**{**values, **pairs, "gpus": gpus})


@dataclass(frozen=True)
class Slot:
    """One line of `gpus`: one process on one GPU of one host.

    Parameters
    ----------
    rank : int
        Its position among all lines, from 0.
    node_rank : int
        The rank of its node.
    local_rank : int
        Its position among the lines of that host, from 0.
    """

    rank: int
    node_rank: int
    local_rank: int


@dataclass(frozen=True)
class Job:
    """One launch of one script on some nodes: the user's request, with every default filled in.

    Parameters
    ----------
    name : str
        Unique on this launch machine: letters, digits, `-`, `_`, at most 63, beginning with a letter or digit.
    job_id : str
        The name and a random suffix: unique everywhere. Every process carries it as TORCHFAB_JOB_ID.
    launcher : str
        Name of the launcher.
    script : tuple of str
        A Python script, or `-m` and a module, with its arguments; with `is_program` the whole command of a rank.
    workdir : str
        Absolute path of the directory to run in, on every node.
    python : str
        Interpreter on the nodes: a path, or a name that is looked up in PATH there.
    master_addr : str
        Address of the rendezvous; empty for the address of node 0.
    port : int
        Port of the rendezvous on node 0; 0 for a free one.
    env : Mapping of str to str
        Environment of the processes in addition to what torchfab sets: forwarded variables and `--env`.
    secrets : Mapping of str to str
        The part of the environment whose values are never shown or stored.
    node_dir : str
        Directory of the jobs' folders on a node: an absolute path, or one that begins with `~`.
    grace_s : float
        Seconds between SIGTERM and SIGKILL when the job is stopped.
    options : Mapping of str to Any
        The launcher's own flags, validated.
    ssh_options : tuple of str
        Options of OpenSSH's client (`-F FILE`, `-i KEY`), for a head process that connects to the nodes itself.
    mask_key : str
        Hexadecimal key of the digests that mask secrets in logs; empty if logs are not masked.
    is_program : bool
        Whether `script` runs directly, not by the interpreter; `python` as its first word means the interpreter.
    setup : str
        Commands that each node's login shell runs in phase one, for the environment of the processes; empty for none.
    python_is_default : bool
        Whether an interpreter that `setup` puts first on PATH takes the place of `python`.
    before, after : str
        Shell commands that run once on each node: before the processes, where a failure stops the launch, and after
        their end; empty for none.
    setup_timeout_s, hook_timeout_s : float
        Seconds that `setup`, and each of `before` and `after`, may take on a node.
    files : Mapping of str to str
        Texts by relative path: files that are written on every node before the ranks start, in the folder
        $TORCHFAB_FILES.
    python_version : str
        The version that the interpreter must have on every node, as `3.11`; empty for any.
    probe : bool
        Whether every rank has a probe (`torchfab.launchers.probe`).
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
    is_program: bool = False
    setup: str = ""
    python_is_default: bool = False
    before: str = ""
    after: str = ""
    setup_timeout_s: float = 60.0
    hook_timeout_s: float = 300.0
    files: Mapping[str, str] = field(default_factory=_nothing, repr=False)
    python_version: str = ""
    probe: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)
        check_port(self.port)
        if not self.script:
            raise UsageError("no script was given", "give it after --, for example: -- train.py --batch-size 64")
        if not self.workdir.startswith("/"):
            raise UsageError(f"--workdir must be an absolute path, got {self.workdir!r}")

    def on(self, node: Node) -> Job:
        """Return the job with the interpreter, the directories and the variables of one of its nodes.

        Parameters
        ----------
        node : Node
            The node.

        Returns
        -------
        Job
            The job itself if the hosts file overrides nothing for the node.
        """
        if not (node.python or node.workdir or node.env or node.node_dir or node.setup):
            return self
        return replace(
            self,
            python=node.python or self.python,
            workdir=node.workdir or self.workdir,
            node_dir=node.node_dir or self.node_dir,
            env={**self.env, **dict(node.env)},
            setup=node.setup or self.setup,
            python_is_default=self.python_is_default and not node.python,
        )

    @property
    def script_path(self) -> str | None:
        """The script's path as given; None for a module (`-m`) or a program that needs no file."""
        if self.is_program:
            return command.checked_file(self.script) or None
        return None if self.script[0].startswith("-") else self.script[0]

    @property
    def program(self) -> str:
        """The program that the nodes need in addition to the interpreter: a path, or a name on PATH; empty for none."""
        return self.script[0] if self.is_program and self.script[0] != command.PYTHON else ""

    @property
    def argv(self) -> tuple[str, ...]:
        """The command of a rank."""
        if not self.is_program:
            return (self.python, *self.script)
        return (self.program or self.python, *self.script[1:])

    @property
    def module(self) -> str | None:
        """The top-level package of the module given with `-m`; None for a script."""
        return self.script[1].partition(".")[0] if self.script[0] == "-m" and len(self.script) > 1 else None


def search_path(job: Job, process: Process) -> tuple[str, ...]:
    """Return the folders to prepend to a node's PATH for a process.

    Parameters
    ----------
    job : Job
        The job, as it runs on the node.
    process : Process
        The process.

    Returns
    -------
    tuple of str
        Its own folders, then that of the interpreter (see `interpreter_path`).
    """
    return (*process.path, *interpreter_path(job.python))


def interpreter_path(python: str) -> tuple[str, ...]:
    """Return the folder of an interpreter to prepend to PATH, as activating its environment does.

    Parameters
    ----------
    python : str
        Path of the interpreter.

    Returns
    -------
    tuple of str
        Empty for a system folder, which would hide programs earlier on the user's PATH, and for a name without a
        folder.
    """
    folder = posixpath.dirname(python)
    return () if not folder.startswith("/") or folder in ("/bin", "/usr/bin", "/usr/local/bin") else (folder,)


def check_name(name: str) -> None:
    """Check the name of a job.

    Parameters
    ----------
    name : str
        The name.

    Raises
    ------
    JobNameError
        The name is not valid.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise JobNameError(
            f"a job name is 1 to 63 letters, digits, '-' and '_', and begins with a letter or digit; got {name!r}",
            "choose another --name",
        )


def check_port(port: int) -> None:
    """Check the value of `--port`.

    Parameters
    ----------
    port : int
        The port; 0 for a free one.

    Raises
    ------
    UsageError
        It is not a port number.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port must be a number from 1 to 65535, or 0 for a free one; got {port}")


def node_dir(configured: str, workdir: str) -> str:
    """Return the directory of the jobs' folders on a node.

    Parameters
    ----------
    configured : str
        The setting `node_dir`: absolute, beginning with `~`, or relative to the workdir.
    workdir : str
        The job's working directory.

    Returns
    -------
    str
        An absolute path, or one that begins with `~`.
    """
    path = str(configured)
    return path if path.startswith(("/", "~")) else f"{workdir.rstrip('/')}/{path}"


@dataclass(frozen=True)
class Facts:
    """The results of phase one on a node that a plan depends on.

    Parameters
    ----------
    folder : str
        Absolute path of the job's folder on the node.
    gpus, cpus : int
        Number of GPUs and CPU cores that the job's processes may use there; 0 cpus if unknown.
    port : int, optional
        The port reserved for the rendezvous; on node 0 only.
    is_root : bool
        Whether the job runs as root there.
    versions : Mapping of str to str
        Version of each module and program of `Requirements` that was found, empty if the version is unknown; for
        alternative programs, all that were found.
    setup_names : tuple of str
        Names of the variables that the job's `setup` has set there.
    """

    folder: str
    gpus: int = 0
    cpus: int = 0
    port: int | None = None
    is_root: bool = False
    versions: Mapping[str, str] = field(default_factory=_nothing)
    setup_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Process:
    """One process on one node, started by a supervisor.

    Parameters
    ----------
    name : str
        Its name on the node and the name of its tmux window: `agent`, `rank-3`.
    argv : tuple of str
        The command.
    env : Mapping of str to str
        Variables added to the node's own environment, without secrets.
    rank : int, optional
        Its rank, if it is a rank itself.
    rank_logs : str
        Regular expression over paths relative to the process's folder: the log files of its ranks, which lie below
        `logs/`, with groups `rank`, or `local_rank` and `attempt`.
    folders : tuple of str
        Folders to create in the process's folder before it starts.
    files : Mapping of str to str
        Files to write into the process's folder before it starts: relative path, text. They are readable by their owner
        only, and executable if the text begins with `#!`.
    path, python_path : tuple of str
        Folders to prepend to the node's PATH, and to PYTHONPATH.
    secrets : bool
        Whether its environment includes the secret part of the job's.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=_nothing)
    rank: int | None = None
    rank_logs: str = ""
    folders: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=_nothing)
    path: tuple[str, ...] = ()
    python_path: tuple[str, ...] = ()
    secrets: bool = True


@dataclass(frozen=True)
class NodePlan:
    """The part of a plan for one node.

    Parameters
    ----------
    node : Node
        The node.
    folder : str
        Absolute path of the job's folder on the node.
    processes : tuple of Process
        The processes to start there.
    """

    node: Node
    folder: str
    processes: tuple[Process, ...]


@dataclass(frozen=True)
class Plan:
    """A complete launch: a dry run prints it, a runtime executes it, and the record stores it.

    Parameters
    ----------
    job : Job
        The user's request.
    nodes : tuple of NodePlan
        The processes of each node, in the order of node ranks.
    world_size : int
        Planned number of ranks.
    defaults : Mapping of str to str
        Every default that torchfab chose, as human-readable text: `port` -> `41233 (free on node1)`.
    min_nodes : int
        The job has failed when fewer nodes than this are left; less than the number of nodes for an elastic job.
    has_head : bool
        Whether a process on node 0 connects to the other nodes by itself, so that these must be started before it.
    """

    job: Job
    nodes: tuple[NodePlan, ...]
    world_size: int
    defaults: Mapping[str, str] = field(default_factory=_nothing)
    min_nodes: int = 0
    has_head: bool = False

    @property
    def start_order(self) -> tuple[tuple[NodePlan, ...], ...]:
        """The nodes in waves, in start order; the nodes of one wave start simultaneously."""
        waves = (self.nodes[1:], self.nodes[:1]) if self.has_head else (self.nodes,)
        return tuple(wave for wave in waves if wave)

    @property
    def session(self) -> str:
        """Prefix of the names of the job's tmux sessions."""
        return self.job.name


def with_files(plan: Plan) -> Plan:
    """Return a plan that writes the files of the job on each node, once per node.

    Parameters
    ----------
    plan : Plan
        The plan of any launcher.

    Returns
    -------
    Plan
        The same plan if the job has no files.
    """
    if not plan.job.files:
        return plan
    return replace(plan, nodes=tuple(_with_files(each, plan.job.files) for each in plan.nodes))


def _with_files(node_plan: NodePlan, texts: Mapping[str, str]) -> NodePlan:
    first, *others = node_plan.processes
    env = {FILES: f"{node_plan.folder}/{first.name}/files"}
    holder = replace(first, files={**first.files, **{f"files/{name}": text for name, text in texts.items()}})
    processes = tuple(replace(each, env={**each.env, **env}) for each in (holder, *others))
    return replace(node_plan, processes=processes)


def session_name(job_name: str, node_rank: int) -> str:
    """Return the name of a job's tmux session on a node.

    It contains the node rank, because two hosts can be the same machine.

    Parameters
    ----------
    job_name : str
        The job's name.
    node_rank : int
        The rank of the node, from 0.

    Returns
    -------
    str
        `NAME-nodeRANK`.
    """
    return f"{job_name}-node{node_rank}"


@dataclass(frozen=True)
class Submission:
    """A job for a cluster's scheduler: a dry run prints it, and a runtime submits it.

    Parameters
    ----------
    job : Job
        The user's request.
    text : str
        The sbatch file or manifest to submit, without secret values.
    nodes, world_size : int
        Requested number of nodes and of ranks.
    details : Mapping of str to Any
        More data for the runtime, representable as JSON; stored in the record.
    defaults : Mapping of str to str
        Every default that torchfab chose, as human-readable text.
    hosts : tuple of Node
        The nodes, if their names are known before the scheduler has placed the job; else empty.
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
    """A program that a launcher requires.

    Parameters
    ----------
    names : tuple of str
        Alternative names; one of them must be in PATH, or in the interpreter's directory.
    install : str
        The command that installs it.
    version_flag : str
        The flag with which it prints its version.
    on_head_only : bool
        Whether only node 0 requires it.
    """

    names: tuple[str, ...]
    install: str
    version_flag: str = "--version"
    on_head_only: bool = False


@dataclass(frozen=True)
class Requirements:
    """The requirements of a launcher on the nodes; phase one checks them.

    Parameters
    ----------
    modules : tuple of str
        Python modules that the interpreter must find.
    port : bool
        Whether node 0 must reserve a port for the rendezvous.
    peers : bool
        Whether every node connects to every other node, not only to node 0, at the addresses of the hosts file.
    programs : tuple of Program
        Required programs.
    head_modules : tuple of str
        Modules required on node 0 only.
    installs : Mapping of str to str
        Arguments of `python -m pip install` for a module. Default: the module's name.
    parser : tuple of str
        Arguments of the interpreter that parse the flags that the user passes to a launcher. On node 0, exit code 2 is
        an error, described by the last line of stderr. Empty: nothing to check.
    """

    modules: tuple[str, ...] = ("torch",)
    port: bool = True
    peers: bool = False
    programs: tuple[Program, ...] = ()
    head_modules: tuple[str, ...] = ()
    installs: Mapping[str, str] = field(default_factory=_nothing)
    parser: tuple[str, ...] = ()

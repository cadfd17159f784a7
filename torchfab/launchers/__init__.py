"""Launchers: each turns a job into the processes to run (argv and env). One file each, of pure functions.

A launcher is a module that has the functions of `Launcher`; one that renders a job for a cluster's own scheduler has
those of `BatchLauncher` instead. mypy checks this where they are loaded, at the end of this file. Launchers know
nothing of runtimes, connections, clocks or files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torchfab.core.errors import TorchfabError

if TYPE_CHECKING:
    from torchfab.core.specs import Facts, Job, Node, Plan, Requirements, Slot, Submission

Loader = TypeVar("Loader", bound=Callable[[], Any])


class AnyLauncher(Protocol):
    """The interface that all launchers have in common."""

    @property
    def NAME(self) -> str:  # noqa: N802  # a constant of the module
        """Name of the launcher, as in the record and in `launch-<name>`."""

    @property
    def Flags(self) -> type[Any]:  # noqa: N802  # a class of the module
        """A frozen dataclass of the launcher's own flags, in addition to those that all launches share."""

    def options(self, flags: Any) -> Mapping[str, Any]:
        """Check the flags.

        Parameters
        ----------
        flags : Flags
            The flags of this launcher.

        Returns
        -------
        Mapping
            The options of the job (`Job.options`).

        Raises
        ------
        UsageError
            The value of a flag is invalid.
        """


class Launcher(AnyLauncher, Protocol):
    """A launcher over a hosts file: the tmux runtime starts its plan."""

    def requirements(self, job: Job) -> Requirements:
        """List what every node must have; phase one checks it.

        Parameters
        ----------
        job : Job
            The job.

        Returns
        -------
        Requirements
        """

    def facts_from_flags(self, job: Job, nodes: Sequence[Node]) -> tuple[Facts, ...] | None:
        """Return the facts of all nodes if the flags determine them, so that a dry run need not connect.

        Parameters
        ----------
        job : Job
            The job.
        nodes : sequence of Node
            The nodes, by rank.

        Returns
        -------
        tuple of Facts or None
            None: the nodes must be queried.
        """

    def plan(self, job: Job, nodes: Sequence[Node], slots: Sequence[Slot], facts: Sequence[Facts]) -> Plan:
        """Plan the launch: the processes of every node.

        Parameters
        ----------
        job : Job
            The job; its options come from `options`.
        nodes, facts : sequences of equal length
            The nodes and their facts, by node rank.
        slots : sequence of Slot
            The slots of the hosts file; empty for a file without slots.

        Returns
        -------
        Plan

        Raises
        ------
        UsageError
            The flags do not fit the nodes.
        """


class BatchLauncher(AnyLauncher, Protocol):
    """A launcher for a cluster's own scheduler: its runtime submits what `plan` renders."""

    @property
    def RUNTIME(self) -> str:  # noqa: N802  # a constant of the module
        """Name of the runtime."""

    def plan(self, job: Job) -> Submission:
        """Plan the submission to the scheduler.

        Parameters
        ----------
        job : Job
            The job; its options come from `options`.

        Returns
        -------
        Submission

        Raises
        ------
        UsageError
            The scheduler would not accept the job.
        """


def escape_for_torchrun(script: Sequence[str]) -> tuple[str, ...]:
    """Escape a script and its arguments so that torchrun passes them on unchanged.

    torchrun applies string.Template to every argument, which replaces `$local_rank` and turns `$$` into `$`.

    Parameters
    ----------
    script : sequence of str
        The script and its arguments.

    Returns
    -------
    tuple of str
    """
    return tuple(re.sub(r"\$(?=\$|local_rank|\{local_rank\})", "$$", arg) for arg in script)


def torchrun_script(job: Job) -> tuple[str, ...]:
    """Return the end of a torchrun command: the script and its arguments, escaped.

    Parameters
    ----------
    job : Job
        The job, as it runs on the node.

    Returns
    -------
    tuple of str
    """
    return ("--no-python", *escape_for_torchrun(job.argv)) if job.is_program else escape_for_torchrun(job.script)


# ---- by name


def load(name: str) -> Launcher:
    """Return a launcher over a hosts file by its name. Its module is imported only when a job needs it.

    Parameters
    ----------
    name : str
        Its name: `per-node`.

    Returns
    -------
    module

    Raises
    ------
    TorchfabError
        There is no such launcher: the record was written by another version.
    """
    return _known(_ON_HOSTS, name)()


def load_batch(name: str) -> BatchLauncher:
    """Return the launcher of a scheduler by its name.

    Parameters
    ----------
    name : str
        Its name: `slurm`.

    Returns
    -------
    module

    Raises
    ------
    TorchfabError
        There is no such launcher.
    """
    return _known(_BATCH, name)()


def load_any(name: str) -> AnyLauncher:
    """Return any launcher by its name.

    Parameters
    ----------
    name : str
        Its name.

    Returns
    -------
    module

    Raises
    ------
    TorchfabError
        There is no such launcher.
    """
    loaders: Mapping[str, Callable[[], AnyLauncher]] = {**_ON_HOSTS, **_BATCH}
    return _known(loaders, name)()


def _known(loaders: Mapping[str, Loader], name: str) -> Loader:
    if name not in loaders:
        raise TorchfabError(f"there is no launcher {name!r}", "use the torchfab that launched the job")
    return loaders[name]


def _per_node() -> Launcher:
    from torchfab.launchers import per_node

    return per_node


def _per_gpu() -> Launcher:
    from torchfab.launchers import per_gpu

    return per_gpu


def _deepspeed() -> Launcher:
    from torchfab.launchers import deepspeed

    return deepspeed


def _mpi() -> Launcher:
    from torchfab.launchers import mpi

    return mpi


def _colossalai() -> Launcher:
    from torchfab.launchers import colossalai

    return colossalai


def _network() -> Launcher:
    from torchfab.launchers import network_benchmark

    return network_benchmark


def _slurm() -> BatchLauncher:
    from torchfab.launchers import slurm

    return slurm


def _kubernetes() -> BatchLauncher:
    from torchfab.launchers import kubernetes

    return kubernetes


_ON_HOSTS: Mapping[str, Callable[[], Launcher]] = {
    "per-node": _per_node,
    "per-gpu": _per_gpu,
    "deepspeed": _deepspeed,
    "mpi": _mpi,
    "colossalai": _colossalai,
    "network": _network,
}
_BATCH: Mapping[str, Callable[[], BatchLauncher]] = {"slurm": _slurm, "kubernetes": _kubernetes}

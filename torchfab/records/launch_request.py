"""The launch request: everything needed to launch a job again, stored beside its record without secret values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, fields, replace
from pathlib import Path
from typing import Any

from torchfab import launchers
from torchfab.core import flag_values
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Job, Node, Slot
from torchfab.launchers import Launcher
from torchfab.records import atomic

FILE = "asked.json"
_NEWER = (
    *("is_program", "setup", "python_is_default", "setup_timeout_s", "before", "after", "hook_timeout_s"),
    *("files", "python_version", "probe"),
)


@dataclass(frozen=True)
class LaunchRequest:
    """A launch as the user requested it.

    Parameters
    ----------
    job : Job
        The job, with all defaults filled in. Its job_id is that of the first attempt.
    own : Mapping of str to Any
        The launcher's own flags.
    nodes, slots : tuple of Node, tuple of Slot
        All lines of the inventory: the nodes of the first attempt and the spares.
    count : int
        The number of nodes to run on.
    policy : Mapping of str to Any
        The fields of `torchfab.supervise.model.Policy`. Empty if the job was never supervised.
    """

    job: Job
    own: Mapping[str, Any]
    nodes: tuple[Node, ...]
    slots: tuple[Slot, ...]
    count: int
    policy: Mapping[str, Any] = field(default_factory=dict)

    @property
    def launcher(self) -> Launcher:
        """The launcher."""
        return launchers.load(self.job.launcher)

    def renamed(self, name: str) -> LaunchRequest:
        """Return the same request for a job of another name.

        Parameters
        ----------
        name : str
            The name.

        Returns
        -------
        LaunchRequest
        """
        token = self.job.job_id.rpartition("-")[2]
        return replace(self, job=replace(self.job, name=name, job_id=f"{name}-{token}"))

    def next_job(self, token: str, new_port: bool = False) -> Job:
        """Return the job of another attempt: the same job under a new id.

        Parameters
        ----------
        token : str
            The suffix of the new job id.
        new_port : bool
            Choose a free port even if one was requested, because processes of earlier attempts may still hold the
            requested one. Default False.

        Returns
        -------
        Job
            The job to launch.
        """
        return replace(self.job, job_id=f"{self.job.name}-{token}", port=0 if new_port else self.job.port)

    def save(self, folder: Path) -> None:
        """Write the request into a job's folder, with mode 0600 and only the names of the secrets.

        Parameters
        ----------
        folder : Path
            The job's folder.

        Raises
        ------
        TorchfabError
            The file cannot be written.
        """
        values = {each.name: getattr(self.job, each.name) for each in fields(Job) if each.name != "options"}
        values["files"] = dict(self.job.files)
        if not any((self.job.setup, *(node.setup for node in self.nodes))):
            values.update(python_is_default=False, setup_timeout_s=0)
        if not (self.job.before or self.job.after):
            values["hook_timeout_s"] = 0
        for name in _NEWER:  # empty values are left out, so that an older torchfab can read the file
            if not values[name]:
                del values[name]
        job = {**values, "env": dict(self.job.env), "secrets": sorted(self.job.secrets)}
        document = {
            "job": job,
            "own": dict(self.own),
            "nodes": [each.as_json() for each in self.nodes],
            "slots": [asdict(each) for each in self.slots],
            "count": self.count,
            "policy": dict(self.policy),
        }
        atomic.write_json(folder / FILE, document)


def load(folder: Path, environ: Mapping[str, str]) -> LaunchRequest:
    """Read the launch request of a job.

    Parameters
    ----------
    folder : Path
        The job's folder.
    environ : Mapping of str to str
        Where the values of the job's secrets are looked up by name.

    Returns
    -------
    LaunchRequest
        The request, with its secrets.

    Raises
    ------
    UsageError
        The job cannot be launched again from its record, or secrets are missing in `environ`.
    TorchfabError
        The file cannot be read.
    """
    try:
        document = json.loads((folder / FILE).read_text())
    except FileNotFoundError:
        raise UsageError(
            f"job {folder.name} cannot be launched again: a scheduler runs it, or an older torchfab launched it",
            "use the scheduler's own requeueing, or launch it anew with another --name",
        ) from None
    except (OSError, ValueError) as error:
        raise TorchfabError(f"{folder / FILE} cannot be read: {error}") from None
    missing = [name for name in document["job"]["secrets"] if name not in environ]
    if missing:
        raise UsageError(
            f"job {folder.name} needs {', '.join(missing)} in its environment; torchfab stores only their names",
            "export them here, and run the command again",
        )
    return _from_json(document, environ)


def workdir_of(folder: Path, defaults: Mapping[str, str]) -> str:
    """Return the working directory of a job, for nodes whose line of the hosts file does not set one.

    Parameters
    ----------
    folder : Path
        The job's folder.
    defaults : Mapping of str to str
        What the launch printed, for a job without a launch request.

    Returns
    -------
    str
        An absolute path; empty if it is not known.
    """
    try:
        return str(json.loads((folder / FILE).read_text())["job"]["workdir"])
    except (OSError, ValueError, KeyError, TypeError):
        return defaults.get("workdir", "").partition("; ")[0]


def _from_json(document: Mapping[str, Any], environ: Mapping[str, str]) -> LaunchRequest:
    job = dict(document["job"])
    job["secrets"] = {name: environ[name] for name in job["secrets"]}
    job["script"], job["ssh_options"] = tuple(job["script"]), tuple(job["ssh_options"])
    launcher = launchers.load(job["launcher"])
    own = flag_values.parse(launcher.Flags, document["own"])  # an older torchfab wrote every value as text
    return LaunchRequest(
        job=Job(**job, options=launcher.options(own)),
        own=vars(own),
        nodes=tuple(Node.from_json(node) for node in document["nodes"]),
        slots=tuple(Slot(**slot) for slot in document["slots"]),
        count=document["count"],
        policy=document["policy"],
    )


def select_nodes(
    nodes: Sequence[Node], slots: Sequence[Slot], selected: Sequence[Node]
) -> tuple[tuple[Node, ...], tuple[Slot, ...]]:
    """Select some nodes and the slots on them, and renumber both from 0. Pure.

    Parameters
    ----------
    nodes, slots : sequence of Node, sequence of Slot
        All lines of the inventory.
    selected : sequence of Node
        The nodes to keep, in the order of their new ranks.

    Returns
    -------
    tuple of Node, tuple of Slot
        The renumbered nodes and slots.
    """
    new_rank = {node.rank: rank for rank, node in enumerate(selected)}
    kept = sorted((slot for slot in slots if slot.node_rank in new_rank), key=lambda slot: slot.rank)
    renumbered = tuple(replace(slot, rank=rank, node_rank=new_rank[slot.node_rank]) for rank, slot in enumerate(kept))
    return tuple(replace(node, rank=rank) for rank, node in enumerate(selected)), renumbered

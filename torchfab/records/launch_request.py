"""What it takes to launch a job again: what was asked for, kept beside its record, without secret values."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torchfab import launchers
from torchfab.core import flag_values
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.core.specs import Job, Node, Slot
from torchfab.launchers import Launcher

FILE = "asked.json"


@dataclass(frozen=True)
class LaunchRequest:
    """A launch as it was asked for.

    Parameters
    ----------
    job : Job
        The job, with every default filled in; the job_id is that of its first attempt.
    own : Mapping of str to Any
        The launcher's own flags.
    nodes, slots : tuple of Node, tuple of Slot
        All lines of the inventory: those that ran first, and the spares.
    count : int
        On how many nodes it is to run.
    policy : Mapping of str to Any
        How it is supervised, as `torchfab.supervise.model.Policy` has it; empty where it never was.
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

    def next_job(self, token: str, new_port: bool = False) -> Job:
        """Return the job of another attempt: the same under a new id.

        Parameters
        ----------
        new_port : bool
            Leave a port that was asked for to processes of earlier attempts that may still hold it. Default False.
        """
        return replace(self.job, job_id=f"{self.job.name}-{token}", port=0 if new_port else self.job.port)

    def save(self, folder: Path) -> None:
        """Write it into a job's folder, readable by its owner only; of secrets their names.

        Raises
        ------
        TorchfabError
            It cannot be written.
        """
        values = {each.name: getattr(self.job, each.name) for each in fields(Job) if each.name != "options"}
        job = {**values, "env": dict(self.job.env), "secrets": sorted(self.job.secrets)}
        document = {
            "job": job,
            "own": dict(self.own),
            "nodes": [asdict(each) for each in self.nodes],
            "slots": [asdict(each) for each in self.slots],
            "count": self.count,
            "policy": dict(self.policy),
        }
        _write(folder / FILE, document)


def load(folder: Path, environ: Mapping[str, str]) -> LaunchRequest:
    """Return what was asked for, with the secrets of the job's environment taken from here by name.

    Raises
    ------
    UsageError
        The job cannot be launched again from its record, or secrets are missing.
    TorchfabError
        The file is not torchfab's.
    """
    try:
        document = json.loads((folder / FILE).read_text())
    except FileNotFoundError:
        raise UsageError(
            f"job {folder.name} cannot be launched again: a scheduler runs it, or an older torchfab launched it",
            "a scheduler has requeueing of its own; else launch it anew, with another --name",
        ) from None
    except (OSError, ValueError) as error:
        raise TorchfabError(f"{folder / FILE} cannot be read: {error}") from None
    missing = [name for name in document["job"]["secrets"] if name not in environ]
    if missing:
        raise UsageError(
            f"job {folder.name} needs {', '.join(missing)} in its environment, of which only the names are kept",
            "export them here, and say it again",
        )
    return _from_json(document, environ)


def _from_json(document: Mapping[str, Any], environ: Mapping[str, str]) -> LaunchRequest:
    job = dict(document["job"])
    job["secrets"] = {name: environ[name] for name in job["secrets"]}
    job["script"], job["ssh_options"] = tuple(job["script"]), tuple(job["ssh_options"])
    launcher = launchers.load(job["launcher"])
    own = flag_values.parse(launcher.Flags, document["own"])  # an older torchfab wrote every value as text
    return LaunchRequest(
        job=Job(**job, options=launcher.options(own)),
        own=vars(own),
        nodes=tuple(Node(**{**node, "gpus": tuple(node["gpus"])}) for node in document["nodes"]),
        slots=tuple(Slot(**slot) for slot in document["slots"]),
        count=document["count"],
        policy=document["policy"],
    )


def select_nodes(
    nodes: Sequence[Node], slots: Sequence[Slot], wanted: Sequence[Node]
) -> tuple[tuple[Node, ...], tuple[Slot, ...]]:
    """Return some nodes, and the slots on them, numbered anew in their order. Pure."""
    new_rank = {node.rank: rank for rank, node in enumerate(wanted)}
    kept = sorted((slot for slot in slots if slot.node_rank in new_rank), key=lambda slot: slot.rank)
    renumbered = tuple(replace(slot, rank=rank, node_rank=new_rank[slot.node_rank]) for rank, slot in enumerate(kept))
    return tuple(replace(node, rank=rank) for rank, node in enumerate(wanted)), renumbered


def _write(path: Path, document: Mapping[str, Any]) -> None:
    beside = path.with_name(path.name + ".new")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise TorchfabError(
            f"cannot write {path}: {error.strerror}", "free space or rights there, or set torchfab.records"
        ) from None

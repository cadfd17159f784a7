"""A job as it was launched, and what is written down of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import TorchfabError
from torchfab.core.specs import Node, Plan
from torchfab.records import atomic

FORMAT = 1


@dataclass(frozen=True)
class Record:
    """A job as it was launched.

    Parameters
    ----------
    folder : Path
        Its folder on this machine.
    name, job_id, launcher, runtime : str
        As in Job; the runtime is the name of the module in `torchfab.runtimes` that acts on it.
    created : float
        When it was launched, in seconds since the epoch.
    script : tuple of str
        What runs.
    nodes : tuple of Node
        Where it runs.
    node_dir : str
        Where its folders lie on the nodes.
    world_size, min_nodes : int
        As in Plan.
    settings : ConnectionSettings
        How its nodes are reached.
    chosen : Mapping of str to str
        The defaults that torchfab chose.
    details : Mapping of str to Any
        What the runtime alone knows: ids that a scheduler gave, where its files lie.
    attempt : int
        How often it was launched under this name, this time included.
    mask_key : str
        The key of the digests by which the nodes hide what the job's secrets print; empty for none.
    grace_s : float
        Between SIGTERM and SIGKILL when it is stopped, unless that says otherwise. Default 10.
    """

    folder: Path
    name: str
    job_id: str
    launcher: str
    runtime: str
    created: float
    script: tuple[str, ...]
    nodes: tuple[Node, ...]
    node_dir: str
    world_size: int
    min_nodes: int
    settings: ConnectionSettings
    defaults: Mapping[str, str]
    details: Mapping[str, Any] = field(default_factory=dict)
    attempt: int = 1
    mask_key: str = field(default="", repr=False)
    grace_s: float = 10.0

    @property
    def is_elastic(self) -> bool:
        """Whether the job goes on when a node is lost."""
        return self.min_nodes < len(self.nodes)

    def is_superseded(self) -> bool:
        """Say whether the job was launched again under its name since."""
        try:
            current = json.loads((self.folder / "record.json").read_text())
            return bool(current["job_id"] != self.job_id)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def note(self, event: str, **details: Any) -> None:
        """Append an event to the job's story; what cannot be written is not worth failing for."""
        line = json.dumps({"time": time.time(), "event": event, **details}) + "\n"
        try:
            handle = os.open(self.folder / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(line)
        except OSError:
            pass

    def events(self) -> tuple[Mapping[str, Any], ...]:
        """Return what was noted of the job, the oldest first; a line that was cut short is left out."""
        try:
            lines = (self.folder / "events.jsonl").read_text(errors="replace").splitlines()
        except OSError:
            return ()
        return tuple(event for line in lines if (event := _event(line)))

    @property
    def is_confirmed(self) -> bool:
        """Whether all nodes were told to keep what they had started: a launch that is cut off before says so."""
        names = [event["event"] for event in self.events() if event["event"] in ("planned", "started")]
        return not names or names[-1] == "started"  # each attempt is planned anew

    def remember(self, state: str, code: int | None, ended: bool) -> None:
        """Remember what was last seen of the job."""
        try:
            seen = {"state": state, "code": code, "ended": ended, "seen": time.time(), "job_id": self.job_id}
            atomic.write(self.folder / "state.json", seen)
        except OSError:
            pass

    def last_seen(self) -> dict[str, Any]:
        """Return what was last seen of the job: state, code, ended, seen (seconds since the epoch)."""
        nothing = {"state": "starting", "code": None, "ended": False, "seen": self.created}
        try:
            seen = {**nothing, **json.loads((self.folder / "state.json").read_text())}
            return seen if seen.pop("job_id", self.job_id) == self.job_id else nothing  # else of an earlier attempt
        except (OSError, ValueError, TypeError):
            return nothing


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
        return {**event, "time": float(event["time"]), "event": str(event["event"])}
    except (ValueError, KeyError, TypeError):
        return {}


def plan_as_json(plan: Plan) -> list[dict[str, Any]]:
    """Return what runs on every node, as JSON; of secrets the names only."""
    return [
        {
            "node_rank": each.node.rank,
            "host": each.node.label,
            "folder": each.folder,
            "secrets": sorted(plan.job.secrets),
            "processes": [
                {"name": process.name, "argv": list(process.argv), "env": dict(process.env), "rank": process.rank}
                for process in each.processes
            ],
        }
        for each in plan.nodes
    ]


def as_json(record: Record) -> dict[str, Any]:
    """Return what is written into record.json.

    `chosen` is the key of `defaults` since the first version that wrote records: an older torchfab's are read, too.
    """
    values = {key: value for key, value in vars(record).items() if key not in ("folder", "defaults")}
    nodes = [asdict(node) for node in record.nodes]
    return {
        **values,
        "format": FORMAT,
        "nodes": nodes,
        "settings": asdict(record.settings),
        "chosen": dict(record.defaults),
    }


def from_json(folder: Path, values: dict[str, Any]) -> Record:
    """Return the record of a folder from what its record.json says.

    Raises
    ------
    KeyError, TypeError, ValueError
        It says no such thing.
    TorchfabError
        Another torchfab has written it.
    """
    values = dict(values)
    if (version := values.pop("format")) != FORMAT:
        told = f"{folder / 'record.json'} has format {version!r}, and this torchfab reads {FORMAT}"
        raise TorchfabError(told, "use the torchfab that launched the job")
    nodes = tuple(Node(**{**node, "gpus": tuple(node["gpus"])}) for node in values.pop("nodes"))
    settings, defaults = values.pop("settings"), values.pop("chosen")
    if not all(isinstance(each, (int, float)) for each in (values["created"], values.get("grace_s", 0))):
        raise TypeError("created or grace_s is no number")
    settings = ConnectionSettings(**{**settings, "identities": tuple(settings["identities"])})
    values["script"] = tuple(values["script"])
    return Record(folder=folder, nodes=nodes, settings=settings, defaults=defaults, **values)

"""The record of a launched job, and its JSON form on disk."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import TorchfabError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node, Plan
from torchfab.records import atomic

FORMAT = 1


@dataclass(frozen=True)
class Record:
    """A launched job.

    Parameters
    ----------
    folder : Path
        The job's folder on this machine.
    name, job_id, launcher, runtime : str
        As in Job. The runtime is the name of the module in `torchfab.runtimes` that controls the job.
    created : float
        Launch time, in seconds since the epoch.
    script : tuple of str
        The script and its arguments.
    nodes : tuple of Node
        The nodes that the job runs on.
    node_dir : str
        The parent of the job's folders on the nodes.
    world_size, min_nodes : int
        As in Plan.
    settings : ConnectionSettings
        How to connect to the nodes.
    defaults : Mapping of str to str
        The values that torchfab filled in for flags that were not given.
    details : Mapping of str to Any
        Data that only the runtime uses, such as the ids and file paths of a scheduler.
    attempt : int
        The number of launches under this name, this one included. Default 1.
    mask_key : str
        The key of the digests by which the nodes mask the job's secrets in its output. Empty: there are none.
    grace_s : float
        Seconds between SIGTERM and SIGKILL when the job is stopped and `--grace` is not given. Default 10.
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
        """Whether the job continues when a node is lost."""
        return self.min_nodes < len(self.nodes)

    @property
    def fixed_world_size(self) -> int:
        """Number of its ranks; 0 if the loss of a node changes it."""
        return 0 if self.is_elastic else self.world_size

    def is_superseded(self) -> bool:
        """Read from disk whether a later attempt of the job was launched.

        Returns
        -------
        bool
            False if the record cannot be read.
        """
        try:
            current = json.loads((self.folder / "record.json").read_text())
            return bool(current["job_id"] != self.job_id)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def note(self, event: str, **details: Any) -> None:
        """Append an event to events.jsonl. Write errors are ignored.

        Parameters
        ----------
        event : str
            The kind of event: `planned`, `started`.
        **details : any JSON value
            Further keys of the event.
        """
        line = json.dumps({"time": time.time(), "event": event, **details}) + "\n"
        try:
            fd = os.open(self.folder / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(fd, "w") as file:
                file.write(line)
        except OSError:
            pass

    def events(self) -> tuple[Mapping[str, Any], ...]:
        """Read the job's events, the oldest first.

        Returns
        -------
        tuple of Mapping
            Without the lines that do not parse, such as a truncated last one.
        """
        try:
            lines = (self.folder / "events.jsonl").read_text(errors="replace").splitlines()
        except OSError:
            return ()
        return tuple(event for line in lines if (event := _parse_event(line)))

    @property
    def is_confirmed(self) -> bool:
        """Whether the launch was committed on all nodes. False for a launch that was interrupted before that."""
        names = [event["event"] for event in self.events() if event["event"] in ("planned", "started")]
        return not names or names[-1] == "started"  # each attempt writes its own `planned` event

    def remember(self, state: str, code: int | None, ended: bool) -> None:
        """Write the job's last known state to state.json. Write errors are ignored.

        Parameters
        ----------
        state : str
            As in `torchfab.core.status`: `running`.
        code : int, optional
            The job's exit code. None while it runs.
        ended : bool
            Whether the state is final.
        """
        with contextlib.suppress(TorchfabError):
            status = {"state": state, "code": code, "ended": ended, "seen": time.time(), "job_id": self.job_id}
            atomic.write_json(self.folder / "state.json", status)

    def last_seen(self) -> dict[str, Any]:
        """Read the job's last known state from state.json.

        Returns
        -------
        dict
            `state`, `code`, `ended`, and `seen` (seconds since the epoch). A job without a readable file is `starting`.
        """
        initial = {"state": "starting", "code": None, "ended": False, "seen": self.created}
        try:
            status = {**initial, **json.loads((self.folder / "state.json").read_text())}
            # The file of an earlier attempt does not count.
            return status if status.pop("job_id", self.job_id) == self.job_id else initial
        except (OSError, ValueError, TypeError):
            return initial


def _parse_event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
        return {**event, "time": float(event["time"]), "event": str(event["event"])}
    except (ValueError, KeyError, TypeError):
        return {}


def plan_as_json(plan: Plan) -> list[dict[str, Any]]:
    """Return the content of plan.json: the processes of every node, and only the names of the secrets.

    Parameters
    ----------
    plan : Plan
        The plan of the launch.

    Returns
    -------
    list of dict
        One item per node.
    """
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
    """Return the content of record.json.

    In the file, `defaults` has the key `chosen`, as in earlier versions: each version reads the other's records.

    Parameters
    ----------
    record : Record
        The record.

    Returns
    -------
    dict
        Everything but the folder.
    """
    values = {key: value for key, value in vars(record).items() if key not in ("folder", "defaults")}
    nodes = [node.as_json() for node in record.nodes]
    return {
        **values,
        "format": FORMAT,
        "nodes": nodes,
        "settings": asdict(record.settings),
        "chosen": dict(record.defaults),
    }


def from_json(folder: Path, values: dict[str, Any]) -> Record:
    """Build a record from the content of its record.json.

    Parameters
    ----------
    folder : Path
        The job's folder.
    values : dict
        The parsed file.

    Returns
    -------
    Record
        The record.

    Raises
    ------
    KeyError, TypeError, ValueError
        A value is missing or has the wrong type.
    TorchfabError
        The file has a format of another torchfab version.
    """
    values = dict(values)
    if (version := values.pop("format")) != FORMAT:
        problem = f"{folder / 'record.json'} has format {version!r}, and this torchfab reads {FORMAT}"
        raise TorchfabError(problem, "use the torchfab that launched the job")
    nodes = tuple(Node.from_json(node) for node in values.pop("nodes"))
    settings, defaults = values.pop("settings"), values.pop("chosen")
    if not all(isinstance(each, (int, float)) for each in (values["created"], values.get("grace_s", 0))):
        raise TypeError("created or grace_s is not a number")
    settings = ConnectionSettings(**{**settings, "identities": tuple(settings["identities"])})
    values["script"] = tuple(values["script"])
    return Record(folder=folder, nodes=nodes, settings=settings, defaults=defaults, **values)

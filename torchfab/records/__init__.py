"""What was launched from this machine: one folder per job, by name, so that any later `fab` finds the job again.

jobs/<name>/            0700; making it, and locking `launching` in it, claims the name
    record.json         the job, where it runs, how its nodes are reached
    plan.json           what runs on every node, without secret values
    state.json          what was last seen of it
    asked.json          what it takes to launch it again (torchfab.asked)
    events.jsonl        what happened to it, a line each
    attempts/<k>/       the same files of its earlier attempts, where it was launched again under its name
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torchfab.errors import JobNameError, TorchfabError, UsageError
from torchfab.job import Node, Plan, Submission, check_name
from torchfab.settings import Settings

FORMAT = 1
_DEAD_S = 600.0  # the claim of a launch that has ended so long ago is not one that is about to be locked
ATTEMPTS = "attempts"


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
    settings : Settings
        How its nodes are reached.
    chosen : Mapping of str to str
        The defaults that torchfab chose.
    details : Mapping of str to Any
        What the runtime alone knows: ids that a scheduler gave, where its files lie.
    attempt : int
        How often it was launched under this name, this time included.
    mask_key : str
        The key of the digests by which the nodes hide what the job's secrets print; empty for none.
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
    settings: Settings
    chosen: Mapping[str, str]
    details: Mapping[str, Any] = field(default_factory=dict)
    attempt: int = 1
    mask_key: str = field(default="", repr=False)

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
            lines = (self.folder / "events.jsonl").read_text().splitlines()
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
            _write(self.folder / "state.json", seen)
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


class Records:
    """The records of this launch machine.

    Parameters
    ----------
    root : Path
        The folder that holds one folder per job.
    """

    # Locks on the folders of jobs that this process launches, by name.
    _locks: ClassVar[dict[str, int]] = {}

    def __init__(self, root: Path) -> None:
        self.root = root

    def claim(self, name: str) -> Path:
        """Make the folder of a new job, and with it take the name.

        Raises
        ------
        JobNameError
            The name is malformed, or taken.
        """
        check_name(name)
        folder = self.root / name
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._forget_dead_claims()
            if not self._take(folder):
                raise JobNameError(
                    f"there is a job {name} already ({self._what_is(name)})",
                    f"choose another --name, or remove its record once it has ended: fab jobs --remove {name}",
                )
        except OSError as error:
            raise _cannot_write(folder, error) from None
        return folder

    def _forget_dead_claims(self) -> None:
        """Remove what launches have left that were killed before they had written down their job."""
        for path in self.root.glob("*/launching"):
            with contextlib.suppress(OSError):  # it lives, or another one was faster
                if (path.parent / "record.json").exists() or time.time() - path.stat().st_mtime < _DEAD_S:
                    continue
                with path.open() as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path.parent, ignore_errors=True)

    def _take(self, folder: Path) -> bool:
        """Make the folder of a job and lock it, or take over that of a launch that was killed before it had begun."""
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            if (folder / "record.json").exists() or not folder.is_dir():
                return False
        handle = os.open(folder / "launching", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        except OSError:  # a file system without locks
            pass
        self._locks[folder.name] = handle  # until the launch is done, or this process ends, however it ends
        try:
            os.write(handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
        except OSError:  # a full disk
            if not (folder / "record.json").exists():
                self.release(folder.name)
            raise
        return not (folder / "record.json").exists()

    def launched(self, name: str) -> None:
        """Note that a launch is done, however it went."""
        if name in self._locks:
            os.close(self._locks.pop(name))

    def launching(self, name: str) -> tuple[int, str] | None:
        """Return the pid of the `fab` that is launching a job at this moment, and its machine; None when none is."""
        path = self.root / name / "launching"
        try:
            check_name(name)
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    pid, host = file.read().splitlines()[-1].split()
                    return int(pid), host
        except (OSError, ValueError, IndexError, JobNameError):
            pass
        return None

    def _what_is(self, name: str) -> str:
        try:
            record = self.get(name)
        except TorchfabError:
            return "being launched"
        seen = record.last_seen()
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created))
        return f"launched {day}, last seen {seen['state']}"

    def release(self, name: str) -> None:
        """Give a name back: nothing of the job runs or will run."""
        self.launched(name)
        shutil.rmtree(self.root / name, ignore_errors=True)

    def write(self, plan: Plan, runtime: str, created: float, settings: Settings, attempt: int = 1) -> Record:
        """Write down a job before it starts, so that whatever happens from here on, `stop` finds it.

        Parameters
        ----------
        attempt : int
            Beyond the first one, the record of the attempt before is kept in `attempts/`. Default 1.
        """
        if attempt > 1:
            self._keep_attempt(self.root / plan.job.name, attempt - 1)
        record = Record(
            folder=self.root / plan.job.name,
            name=plan.job.name,
            job_id=plan.job.job_id,
            launcher=plan.job.launcher,
            runtime=runtime,
            created=created,
            script=plan.job.script,
            nodes=tuple(each.node for each in plan.nodes),
            node_dir=plan.job.node_dir,
            world_size=plan.world_size,
            min_nodes=plan.min_nodes,
            settings=settings,
            chosen=plan.chosen,
            attempt=attempt,
            mask_key=plan.job.mask_key,
        )
        self._write(record, "plan.json", plan_as_json(plan))
        self._write(record, "record.json", _as_json(record))
        record.note("planned", nodes=len(record.nodes), world_size=record.world_size)
        return record

    def _keep_attempt(self, folder: Path, attempt: int) -> None:
        kept = folder / ATTEMPTS / str(attempt)
        try:
            kept.parent.mkdir(mode=0o700, exist_ok=True)
            kept.mkdir(mode=0o700, exist_ok=True)
            for name in ("plan.json", "state.json", "events.jsonl", "record.json"):
                if (folder / name).exists():
                    shutil.copyfile(folder / name, kept / name)
                    (kept / name).chmod(0o600)
        except OSError as error:
            raise _cannot_write(kept, error) from None

    def earlier(self, record: Record) -> list[Record]:
        """Return the records of a job's earlier attempts, the first one first; what cannot be read is left out."""
        found = []
        for number in range(1, record.attempt):
            try:
                found.append(self.attempt(record, str(number)))
            except UsageError:
                continue
        return found

    def attempt(self, record: Record, text: str) -> Record:
        """Return the record of one of a job's attempts, as given by a flag; the job's own where the text is empty.

        Raises
        ------
        UsageError
            There was no such attempt.
        """
        if text in ("", str(record.attempt)):
            return record
        path = record.folder / ATTEMPTS / text / "record.json"
        try:
            if not (text.isascii() and text.isdigit()):
                raise ValueError(text)
            return _from_json(path.parent, json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            known = f"1-{record.attempt}" if record.attempt > 1 else "only 1"
            raise UsageError(f"job {record.name} has no attempt {text!r}", f"its attempts: {known}") from None

    def write_submission(self, submission: Submission, runtime: str, created: float, settings: Settings) -> Record:
        """Write down a job that is about to be handed to a scheduler."""
        job = submission.job
        record = Record(
            folder=self.root / job.name,
            name=job.name,
            job_id=job.job_id,
            launcher=job.launcher,
            runtime=runtime,
            created=created,
            script=job.script,
            nodes=submission.hosts,
            node_dir=job.node_dir,
            world_size=submission.world_size,
            min_nodes=submission.nodes,
            settings=settings,
            mask_key=job.mask_key,
            chosen=submission.chosen,
            details=dict(submission.details),
        )
        self._write(record, "record.json", _as_json(record))
        record.note("planned", nodes=submission.nodes, world_size=record.world_size)
        return record

    def with_details(self, record: Record, **details: Any) -> Record:
        """Return the record with more details, written down."""
        record = replace(record, details={**record.details, **details})
        self._write(record, "record.json", _as_json(record))
        return record

    def _write(self, record: Record, name: str, value: Any) -> None:
        try:
            _write(record.folder / name, value)
        except OSError as error:
            raise _cannot_write(record.folder, error) from None

    def get(self, name: str) -> Record:
        """Return the record of a job.

        Raises
        ------
        JobNameError
            No job of that name was launched from here.
        """
        path = self.root / name / "record.json"
        try:
            check_name(name)
            return _from_json(path.parent, json.loads(path.read_text()))
        except (OSError, JobNameError):
            known = ", ".join(record.name for record in self.all()[:8]) or "none"
            raise JobNameError(f"no job {name!r} was launched from here", f"jobs known here: {known}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise TorchfabError(f"{path}: not a record of torchfab ({error!r})", "move it away") from None

    def all(self) -> list[Record]:
        """Return all records, the latest first; a folder that holds none is left out."""
        found = []
        for path in self.root.glob("*/record.json"):
            try:
                found.append(_from_json(path.parent, json.loads(path.read_text())))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return sorted(found, key=lambda record: record.created, reverse=True)

    def latest(self) -> Record:
        """Return the job that was launched last.

        Raises
        ------
        JobNameError
            There is none.
        """
        records = self.all()
        if not records:
            raise JobNameError("no job was launched from here yet", "fab launch-per-node --follow")
        return records[0]


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


def _cannot_write(folder: Path, error: OSError) -> TorchfabError:
    return TorchfabError(
        f"cannot write {folder}: {error.strerror}", "free space or rights there, or set torchfab.records"
    )


def _as_json(record: Record) -> dict[str, Any]:
    values = {key: value for key, value in vars(record).items() if key != "folder"}
    nodes = [asdict(node) for node in record.nodes]
    return {
        **values,
        "format": FORMAT,
        "nodes": nodes,
        "settings": asdict(record.settings),
        "chosen": dict(record.chosen),
    }


def _from_json(folder: Path, values: dict[str, Any]) -> Record:
    values = dict(values)
    values.pop("format")
    nodes = tuple(Node(**{**node, "gpus": tuple(node["gpus"])}) for node in values.pop("nodes"))
    settings = values.pop("settings")
    if not isinstance(values["created"], (int, float)):
        raise TypeError("created is no number")
    settings = Settings(**{**settings, "identities": tuple(settings["identities"])})
    return Record(folder=folder, nodes=nodes, settings=settings, **{**values, "script": tuple(values["script"])})


def _write(path: Path, value: Any) -> None:
    beside = path.with_name(path.name + ".new")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)

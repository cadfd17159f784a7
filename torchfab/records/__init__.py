"""The records of jobs launched from this machine: one folder per job, so that any later `fab` finds the job.

jobs/<name>/            mode 0700
    launching           locked during the launch (torchfab.records.name_lock)
    record.json         the job, its nodes, and how to connect to them
    plan.json           the processes of every node, without secret values
    state.json          the last known state
    asked.json          the launch request, to launch the job again (torchfab.records.launch_request)
    events.jsonl        the events of the job, one per line
    attempts/<k>/       the same files of earlier attempts, if the job was launched again under its name
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import JobNameError, TorchfabError, UsageError
from torchfab.core.flag_values import is_whole
from torchfab.core.specs import Plan, Submission, check_name
from torchfab.records import atomic
from torchfab.records.name_lock import NameLock
from torchfab.records.record import Record, as_json, from_json, plan_as_json

__all__ = ["Record", "Records"]

ATTEMPTS = "attempts"
_NOT_A_RECORD = (TorchfabError, ValueError, KeyError, TypeError)


class Records:
    """The records of this launch machine.

    Parameters
    ----------
    root : Path
        The folder that holds one folder per job.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names = NameLock(root)

    def claim(self, name: str) -> Path:
        """Claim the name of a new job: make its folder and lock it.

        Parameters
        ----------
        name : str
            The job's name.

        Returns
        -------
        Path
            The new folder.

        Raises
        ------
        JobNameError
            The name is malformed or taken.
        TorchfabError
            The folder cannot be written.
        """
        check_name(name)
        folder = self.root / name
        try:
            if not self._names.acquire(name):
                raise JobNameError(
                    f"there is a job {name} already ({self._describe(name)})",
                    f"choose another --name, or, if it has ended, remove its record: fab jobs --remove {name}",
                )
        except OSError as error:
            raise atomic.cannot_write(folder, error) from None
        return folder

    def end_launch(self, name: str) -> None:
        """Unlock a job after its launch, successful or not.

        Parameters
        ----------
        name : str
            The job's name.
        """
        self._names.unlock(name)

    def launch_holder(self, name: str) -> tuple[int, str] | None:
        """Find the `fab` process that is launching a job at this moment.

        Parameters
        ----------
        name : str
            The job's name.

        Returns
        -------
        tuple of int and str, or None
            Its pid and its host name. None if the job is not being launched.
        """
        try:
            check_name(name)
        except JobNameError:
            return None
        return self._names.holder(name)

    def _describe(self, name: str) -> str:
        try:
            record = self.get(name)
        except TorchfabError:
            return "being launched"
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created))
        return f"launched {day}, last seen {record.last_seen()['state']}"

    def release(self, name: str) -> None:
        """Remove a job's record and free its name. No process of the job may run.

        Parameters
        ----------
        name : str
            The job's name.
        """
        self._names.remove(name)

    def write(self, plan: Plan, runtime: str, created: float, settings: ConnectionSettings, attempt: int = 1) -> Record:
        """Write the record of a job before it starts, so that `fab stop` always finds it.

        Parameters
        ----------
        plan : Plan
            The plan to be launched.
        runtime : str
            The name of the module in `torchfab.runtimes`.
        created : float
            Launch time, in seconds since the epoch.
        settings : ConnectionSettings
            How to connect to the nodes.
        attempt : int
            The number of the launch under this name. Beyond 1, the previous record is copied to `attempts/`. Default 1.

        Returns
        -------
        Record
            The new record.

        Raises
        ------
        TorchfabError
            A file cannot be written.
        """
        if attempt > 1:
            self._archive_attempt(self.root / plan.job.name, attempt - 1)
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
            defaults=plan.defaults,
            attempt=attempt,
            mask_key=plan.job.mask_key,
            grace_s=plan.job.grace_s,
        )
        atomic.write_json(record.folder / "plan.json", plan_as_json(plan))
        atomic.write_json(record.folder / "record.json", as_json(record))
        record.note("planned", nodes=len(record.nodes), world_size=record.world_size)
        return record

    def _archive_attempt(self, folder: Path, attempt: int) -> None:
        archive = folder / ATTEMPTS / str(attempt)
        try:
            archive.parent.mkdir(mode=0o700, exist_ok=True)
            archive.mkdir(mode=0o700, exist_ok=True)
            for name in ("plan.json", "state.json", "events.jsonl", "record.json"):
                if (folder / name).exists():
                    shutil.copyfile(folder / name, archive / name)
                    (archive / name).chmod(0o600)
        except OSError as error:
            raise atomic.cannot_write(archive, error) from None

    def earlier(self, record: Record) -> list[Record]:
        """Read the records of a job's earlier attempts.

        Parameters
        ----------
        record : Record
            The current attempt.

        Returns
        -------
        list of Record
            The first attempt first. Records that cannot be read are left out.
        """
        found = []
        for number in range(1, record.attempt):
            try:
                found.append(self.attempt(record, str(number)))
            except TorchfabError:
                continue
        return found

    def attempt(self, record: Record, text: str) -> Record:
        """Read the record of one attempt of a job.

        Parameters
        ----------
        record : Record
            The current attempt.
        text : str
            The number of the attempt, as given to a flag. Empty: the current one.

        Returns
        -------
        Record
            The attempt.

        Raises
        ------
        UsageError
            There is no such attempt.
        """
        if text in ("", str(record.attempt)):
            return record
        path = record.folder / ATTEMPTS / text / "record.json"
        try:
            if not is_whole(text):
                raise ValueError(text)
            return from_json(path.parent, json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            known = f"1-{record.attempt}" if record.attempt > 1 else "only 1"
            raise UsageError(f"job {record.name} has no attempt {text!r}", f"its attempts: {known}") from None

    def write_submission(
        self, submission: Submission, runtime: str, created: float, settings: ConnectionSettings
    ) -> Record:
        """Write the record of a job before it is submitted to a scheduler.

        Parameters
        ----------
        submission : Submission
            The submission to be sent to the scheduler.
        runtime, created, settings
            As for `write`.

        Returns
        -------
        Record
            The new record.

        Raises
        ------
        TorchfabError
            A file cannot be written.
        """
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
            grace_s=job.grace_s,
            defaults=submission.defaults,
            details=dict(submission.details),
        )
        atomic.write_json(record.folder / "record.json", as_json(record))
        record.note("planned", nodes=submission.nodes, world_size=record.world_size)
        return record

    def with_details(self, record: Record, **details: Any) -> Record:
        """Add details to a record and write it.

        Parameters
        ----------
        record : Record
            The record.
        **details : any JSON value
            The details to add.

        Returns
        -------
        Record
            The record with the details.

        Raises
        ------
        TorchfabError
            The file cannot be written.
        """
        record = replace(record, details={**record.details, **details})
        atomic.write_json(record.folder / "record.json", as_json(record))
        return record

    def get(self, name: str) -> Record:
        """Read the record of a job.

        Parameters
        ----------
        name : str
            The job's name.

        Returns
        -------
        Record
            The current attempt.

        Raises
        ------
        JobNameError
            No job of that name was launched from here.
        TorchfabError
            The record cannot be read, or has another format.
        """
        path = self.root / name / "record.json"
        try:
            check_name(name)
            return from_json(path.parent, json.loads(path.read_text()))
        except PermissionError as error:
            raise TorchfabError(f"{path} cannot be read: {error.strerror}", "ask whoever launched the job") from None
        except (OSError, JobNameError):
            known = ", ".join(record.name for record in self.all()[:8]) or "none"
            raise JobNameError(f"no job {name!r} was launched from here", f"jobs known here: {known}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise TorchfabError(f"{path}: not a record of torchfab ({error!r})", "move it away") from None

    def all(self) -> list[Record]:
        """Read all records.

        Returns
        -------
        list of Record
            The latest first. Folders whose record is missing or cannot be read are left out.
        """
        found = []
        for folder, values in self._read_all():
            with contextlib.suppress(*_NOT_A_RECORD):
                found.append(from_json(folder, values))
        return sorted(found, key=lambda record: record.created, reverse=True)

    def latest(self) -> Record:
        """Read the record of the job that was launched last.

        Returns
        -------
        Record
            The job.

        Raises
        ------
        JobNameError
            No job was launched from here.
        """
        created = {folder: values.get("created") for folder, values in self._read_all()}
        times = {folder: value for folder, value in created.items() if isinstance(value, (int, float))}
        for folder in sorted(times, key=times.__getitem__, reverse=True):
            with contextlib.suppress(OSError, *_NOT_A_RECORD):
                return from_json(folder, json.loads((folder / "record.json").read_text()))
        raise JobNameError("no job was launched from here yet", "fab launch-per-node --follow")

    def _read_all(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        for path in self.root.glob("*/record.json"):
            with contextlib.suppress(OSError, ValueError):
                if isinstance(values := json.loads(path.read_text()), dict):
                    yield path.parent, values

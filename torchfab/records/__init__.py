"""What was launched from this machine: one folder per job, by name, so that any later `fab` finds the job again.

jobs/<name>/            0700; making it, and locking `launching` in it, claims the name
    record.json         the job, where it runs, how its nodes are reached
    plan.json           what runs on every node, without secret values
    state.json          what was last seen of it
    asked.json          what it takes to launch it again (torchfab.records.launch_request)
    events.jsonl        what happened to it, a line each
    attempts/<k>/       the same files of its earlier attempts, where it was launched again under its name
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import JobNameError, TorchfabError, UsageError
from torchfab.core.flag_values import is_whole
from torchfab.core.specs import Plan, Submission, check_name
from torchfab.records import atomic
from torchfab.records.name_lock import Claims
from torchfab.records.record import Record, as_json, from_json, plan_as_json

__all__ = ["Record", "Records"]

ATTEMPTS = "attempts"


class Records:
    """The records of this launch machine.

    Parameters
    ----------
    root : Path
        The folder that holds one folder per job.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._claims = Claims(root)

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
            if not self._claims.take(name):
                raise JobNameError(
                    f"there is a job {name} already ({self._what_is(name)})",
                    f"choose another --name, or remove its record once it has ended: fab jobs --remove {name}",
                )
        except OSError as error:
            raise atomic.cannot_write(folder, error) from None
        return folder

    def launched(self, name: str) -> None:
        """Note that a launch is done, however it went."""
        self._claims.done(name)

    def launching(self, name: str) -> tuple[int, str] | None:
        """Return the pid of the `fab` that is launching a job at this moment, and its machine; None when none is."""
        try:
            check_name(name)
        except JobNameError:
            return None
        return self._claims.holder(name)

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
        self._claims.release(name)

    def write(self, plan: Plan, runtime: str, created: float, settings: ConnectionSettings, attempt: int = 1) -> Record:
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
            defaults=plan.defaults,
            attempt=attempt,
            mask_key=plan.job.mask_key,
            grace_s=plan.job.grace_s,
        )
        self._write(record, "plan.json", plan_as_json(plan))
        self._write(record, "record.json", as_json(record))
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
            raise atomic.cannot_write(kept, error) from None

    def earlier(self, record: Record) -> list[Record]:
        """Return the records of a job's earlier attempts, the first one first; what cannot be read is left out."""
        found = []
        for number in range(1, record.attempt):
            try:
                found.append(self.attempt(record, str(number)))
            except TorchfabError:
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
            if not is_whole(text):
                raise ValueError(text)
            return from_json(path.parent, json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            known = f"1-{record.attempt}" if record.attempt > 1 else "only 1"
            raise UsageError(f"job {record.name} has no attempt {text!r}", f"its attempts: {known}") from None

    def write_submission(
        self, submission: Submission, runtime: str, created: float, settings: ConnectionSettings
    ) -> Record:
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
            grace_s=job.grace_s,
            defaults=submission.defaults,
            details=dict(submission.details),
        )
        self._write(record, "record.json", as_json(record))
        record.note("planned", nodes=submission.nodes, world_size=record.world_size)
        return record

    def with_details(self, record: Record, **details: Any) -> Record:
        """Return the record with more details, written down."""
        record = replace(record, details={**record.details, **details})
        self._write(record, "record.json", as_json(record))
        return record

    def _write(self, record: Record, name: str, value: Any) -> None:
        try:
            atomic.write(record.folder / name, value)
        except OSError as error:
            raise atomic.cannot_write(record.folder, error) from None

    def get(self, name: str) -> Record:
        """Return the record of a job.

        Raises
        ------
        JobNameError
            No job of that name was launched from here.
        TorchfabError
            Its record cannot be read, or is none of this torchfab's.
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
        """Return all records, the latest first; a folder that holds none is left out."""
        found = []
        for path in self.root.glob("*/record.json"):
            try:
                found.append(from_json(path.parent, json.loads(path.read_text())))
            except (OSError, TorchfabError, ValueError, KeyError, TypeError):
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

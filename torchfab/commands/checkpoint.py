"""`fab checkpoint`: signal a running job to save a checkpoint, and wait until the checkpoint is complete."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from torchfab import runtimes
from torchfab.commands.signal import deliver
from torchfab.core.console import write_err, write_out
from torchfab.core.errors import HostsFailedError, TorchfabError, UsageError
from torchfab.core.format import plural
from torchfab.core.specs import Node
from torchfab.monitoring.checkpoint_save import CheckpointSave, describe
from torchfab.monitoring.job_status import ask_status
from torchfab.records import Record
from torchfab.runtimes import CheckpointWatch, SignalReport
from torchfab.transport.messages.job import CheckpointAnswer

TIMEOUT_S = 300.0
_POLL_S = 0.5


def save_checkpoint(record: Record, name: str, folders: Sequence[str], timeout_s: float) -> int:
    """Signal all ranks, wait until the files of a checkpoint have changed and are complete, and print their names.

    Parameters
    ----------
    record : Record
        The job.
    name : str
        The signal on which the script saves a checkpoint: `SIGUSR1`.
    folders : sequence of str
        Folders of the checkpoints; empty: the folders in the script's arguments, else the usual ones.
    timeout_s : float
        Seconds to wait.

    Returns
    -------
    int
        Exit code: 0 if the checkpoint is complete and all ranks are still running, else 1.

    Raises
    ------
    UsageError
        The job is not running, its checkpoint folder is unknown, or the signal would end a rank. Nothing was sent.
    TorchfabError
        No checkpoint was complete before the timeout.
    """
    save = await_checkpoint(record, name, folders, timeout_s)
    write_out(describe(save.files, save.logged_step))
    if save.running < save.ranks:
        write_err(f"error: {describe_ended(record, save, name)}")
        return 1
    return 0


def describe_ended(record: Record, save: CheckpointSave, name: str) -> str:
    """Return what is said of a job whose ranks have ended after the notice."""
    ended = plural(save.ranks - save.running, "rank")
    return f"{ended} of job {record.name} ended after {name}: the script exits on this signal"


def await_checkpoint(record: Record, name: str, folders: Sequence[str], timeout_s: float) -> CheckpointSave:
    """Send a notice to all ranks, and wait until files of a checkpoint have changed and are whole.

    Parameters
    ----------
    record, name, folders, timeout_s
        As `save_checkpoint` takes them.

    Returns
    -------
    CheckpointSave
        What was saved.

    Raises
    ------
    UsageError, TorchfabError
        As `save_checkpoint` raises them.
    """
    watch = runtimes.load(record.runtime).watch_checkpoints(record)
    try:
        chosen = {"folders": list(folders), "since": {}, "busy": []}
        first = _answers(watch.find_changed({node.rank: chosen for node in record.nodes or (Node(0, "node"),)}))
        save = CheckpointSave(first)
        if not save.folders:
            raise _unknown_folder(record, next(iter(first.values())).cwd)
        _check_handled(record, name, deliver(record, name, None))
        write_err(f"{name} sent; waiting for a checkpoint in {', '.join(save.folders)}")
        _await(watch, save, timeout_s)
    finally:
        watch.close()
    return save


def _answers(found: Mapping[Node, CheckpointAnswer | TorchfabError]) -> dict[Node, CheckpointAnswer]:
    """Return the answers; raise if a host gave none."""
    failed = {node.label: each for node, each in found.items() if isinstance(each, TorchfabError)}
    if failed:
        raise HostsFailedError(f"{len(failed)} of {plural(len(found), 'host')} failed", failed)
    return {node: each for node, each in found.items() if not isinstance(each, TorchfabError)}


def _unknown_folder(record: Record, cwd: str) -> UsageError:
    found = ask_status(record)
    if found.has_ended:
        return UsageError(f"job {record.name} is not running: it is {found.state}", f"fab status {record.name}")
    return UsageError(
        f"the checkpoint folder of job {record.name} is unknown: no argument names a folder (--save-dir, --output_dir, "
        f"...), and {cwd} has none of the usual folders (checkpoints, runs, outputs, ...)",
        f"name it: fab checkpoint {record.name} --dir FOLDER",
    )


def _check_handled(record: Record, name: str, reports: Sequence[SignalReport]) -> None:
    ranks = [each for report in reports for each in report.ranks]
    if all(each.effect == "ignored" for each in ranks):
        raise UsageError(
            f"every rank of job {record.name} ignores {name}",
            f"save a checkpoint in a handler: signal.signal(signal.{name}, handler); or choose another --signal",
        )


def _await(watch: CheckpointWatch, save: CheckpointSave, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not save.is_whole(time.monotonic()):
        if time.monotonic() > deadline or (save.ranks and not save.running and not save.files):
            raise _no_checkpoint(save, timeout_s)
        time.sleep(_POLL_S)
        save.feed(_answers(watch.find_changed(save.requests)), time.monotonic())


def _no_checkpoint(save: CheckpointSave, timeout_s: float) -> TorchfabError:
    if save.ranks and not save.running:
        return TorchfabError("all ranks ended, and no checkpoint file has changed", "fab why")
    if save.unfinished:
        path = save.unfinished[0].path
        return TorchfabError(
            f"no complete checkpoint within {timeout_s:g} s: {path} is still being written", "give more --timeout"
        )
    where = ", ".join(save.folders)
    return TorchfabError(
        f"no file in {where} has changed within {timeout_s:g} s",
        "check what the script does on the signal; give its folder with --dir, or more time with --timeout",
    )

"""The files of a job's checkpoints on a node: their folders, which have changed, and whether they are complete.

This module is independent of training frameworks. A file belongs to a checkpoint if it has changed since a given time
and is neither a log nor a lock; it is incomplete while it has a temporary name or a rank has it open for writing.
"""

from __future__ import annotations

import os
import re
import tempfile

from torchfab.remote import job_files, procfs
from torchfab.remote.job import log_files, open_files, rank_signals, status, step_rate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

# Arguments that name a folder of output: `--save-dir runs`, `--output_dir=out`, `--ckpt x`, `hydra.run.dir=x`.
_OF_OUTPUT = re.compile(r"save|ckpt|checkpoint|output|out_|run|result|exp|default_root", re.IGNORECASE)
_A_FOLDER = re.compile(r"(?:dir|directory|path|folder|root|ckpt|checkpoints?|save|output)$", re.IGNORECASE)
# Folders of the working directory that are searched if no argument names one.
USUAL = ("checkpoints", "checkpoint", "ckpt", "ckpts", "runs", "outputs", "output", "results", "models", "experiments")
_TEMPORARY = re.compile(
    r"(?:^|[._-])(?:tmp|temp|part|partial|incomplete|new|writing|wip)(?=$|[._-])|~$|\.tmp[\w-]*$", re.IGNORECASE
)
_NOT_OF_CHECKPOINTS = re.compile(
    r"^\.|^events\.out\.tfevents|\.(?:log|jsonl|csv|lock|out|err|html|py|pyc|yaml|yml)$", re.IGNORECASE
)
_FOLDERS_OF_OTHERS = {"tensorboard", "wandb", "mlruns", "__pycache__", "node_modules", ".git"}
_MOST_ENTRIES = 100_000
_MOST_FILES = 5_000


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Find the changed files of the job's checkpoints on this node.

    Parameters
    ----------
    request : dict
        As `find_changed` takes it, with the keys that `files.folder_of` needs.

    Returns
    -------
    dict
        As `find_changed` returns it.
    """
    return find_changed(job_files.folder_of(request), request)


def find_changed(folder: str, request: dict[str, Any]) -> dict[str, Any]:
    """Find the files that have changed in the folders of checkpoints.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    request : dict
        `folders` to search, relative to the job's working directory; empty: those that the arguments of the script
        name, else the usual ones. `since`: the clock of each folder at the first query, as it was returned;
        empty: this is the first query. `busy`: as the first query returned it.

    Returns
    -------
    dict
        `cwd`: the job's working directory; `clocks`: time of the file system of each folder, by path; `busy`: inodes of
        files that are being written; `running`: number of ranks that run; `step`: the last one in the logs, or None;
        `files`: the changed files, each with `path`, `root`, `size`, `changed` (seconds by the clock of its file
        system), `whole`.
    """
    processes = [os.path.join(folder, name) for name in job_files.processes(folder)]
    specs = [job_files.read_json(os.path.join(each, job_files.SPEC)) or {} for each in processes]
    ranks = rank_signals.running_ranks(folder)
    cwd = _working_directory(specs, ranks)
    roots = list(request["since"]) or _roots(request["folders"], cwd, specs, ranks)
    roots = [root for root in roots if not root.startswith(folder)]
    pids = procfs.descendants([rank["pid"] for rank in ranks])
    written = _inodes(open_files.written_by([rank["pid"] for rank in ranks] + pids, folder))
    found = {root: list(_files_below(root)) for root in roots}
    answer: dict[str, Any] = {"cwd": cwd, "running": len(ranks), "step": _last_step(processes, specs)}
    if not request["since"]:
        every = [each for below in found.values() for each in below]
        busy = [each["inode"] for each in every if each["inode"] in written or each["temporary"]]
        return {**answer, "clocks": {root: _clock(root) for root in roots}, "busy": busy, "files": []}
    changed = [
        _described(each, root, written)
        for root, below in found.items()
        for each in below
        if each["changed"] > request["since"][root] and each["inode"] not in set(request["busy"])
    ]
    return {**answer, "clocks": {}, "busy": [], "files": changed[:_MOST_FILES]}


def _described(each: dict[str, Any], root: str, written: set[str]) -> dict[str, Any]:
    whole = not each["temporary"] and each["inode"] not in written
    return {"path": each["path"], "root": root, "size": each["size"], "changed": each["changed"], "whole": whole}


# ---- folders


def _working_directory(specs: Sequence[dict[str, Any]], ranks: Sequence[dict[str, Any]]) -> str:
    for rank in ranks:
        try:
            return os.readlink(f"/proc/{rank['pid']}/cwd")
        except OSError:  # it has just ended
            pass
    return next((str(spec["cwd"]) for spec in specs if spec.get("cwd")), os.getcwd())


def _roots(
    given: Sequence[str], cwd: str, specs: Sequence[dict[str, Any]], ranks: Sequence[dict[str, Any]]
) -> list[str]:
    """Return the folders to search, without those below others. A folder named by an argument may not exist yet."""
    argvs = [spec.get("argv") or [] for spec in specs] + [procfs.command_line(rank["pid"]) for rank in ranks]
    named = given or [path for argv in argvs for path in named_folders(argv)]
    paths = {os.path.realpath(os.path.join(cwd, name)) for name in named}
    if not given:  # the working directory itself holds all of the code
        paths = {path for path in paths if not f"{os.path.realpath(cwd)}/".startswith(f"{path}/")}
    found = {path for path in paths if os.path.isdir(os.path.dirname(path))}
    if not found and not given:
        found = {path for name in USUAL if os.path.isdir(path := os.path.realpath(os.path.join(cwd, name)))}
    return sorted(each for each in found if not any(each.startswith(f"{other}/") for other in found))


def named_folders(argv: Sequence[str]) -> list[str]:
    """Return the output folders that a command line names.

    Parameters
    ----------
    argv : sequence of str
        The command line: `--save-dir runs`, `--output_dir=out`.

    Returns
    -------
    list of str
        As written on the command line.
    """
    found = []
    for word, following in zip(argv, [*argv[1:], ""]):  # Python 3.9 has no itertools.pairwise
        name, equals, value = word.partition("=")
        is_named = _OF_OUTPUT.search(name) and _A_FOLDER.search(name)
        if is_named and (equals or (name.startswith("-") and not following.startswith("-"))):
            found.append(value if equals else following)
    return [each for each in found if each]


def _clock(root: str) -> float:
    """Return the time of a folder's file system, which may be another machine's clock: that of its newest entry."""
    root = root if os.path.isdir(root) else os.path.dirname(root)
    try:
        with tempfile.NamedTemporaryFile(dir=root, prefix=".torchfab-") as file:
            return os.fstat(file.fileno()).st_ctime
    except OSError:  # no write permission
        return max((each["changed"] for each in _files_below(root)), default=os.stat(root).st_ctime)


# ---- files


def _files_below(root: str) -> Iterator[dict[str, Any]]:
    folders, count = [root], 0
    while folders and count < _MOST_ENTRIES:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:  # removed meanwhile
            continue
        for entry in entries:
            count += 1
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in _FOLDERS_OF_OTHERS:
                    folders.append(entry.path)
            elif not _NOT_OF_CHECKPOINTS.search(entry.name) and entry.is_file(follow_symlinks=False):
                yield from _file(entry, root)


def _file(entry: os.DirEntry[str], root: str) -> Iterator[dict[str, Any]]:
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError:  # renamed meanwhile
        return
    yield {
        "path": entry.path,
        "inode": f"{found.st_dev}:{found.st_ino}",
        "size": found.st_size,
        "changed": max(found.st_mtime, found.st_ctime),
        "temporary": is_temporary(os.path.relpath(entry.path, root)),
    }


def is_temporary(path: str) -> bool:
    """Return whether a file is still being written, judged by its name or that of a folder above it.

    Parameters
    ----------
    path : str
        The path, relative to the folder of the checkpoints.

    Returns
    -------
    bool
        True for `step-5.part`, `tmp-checkpoint-10/model.pt`, `x.pt.tmp`.
    """
    return any(_TEMPORARY.search(part) for part in path.split(os.sep))


def _inodes(paths: Iterable[str]) -> set[str]:
    found = set()
    for path in paths:
        try:
            entry = os.stat(path)
        except OSError:  # removed meanwhile
            continue
        found.add(f"{entry.st_dev}:{entry.st_ino}")
    return found


def _last_step(processes: Sequence[str], specs: Sequence[dict[str, Any]]) -> int | None:
    rate = step_rate.StepRate()
    for process, spec in zip(processes, specs):  # Python 3.9 has no strict=
        for log in log_files.find(process, spec):
            rate.feed([("", 0.0, line) for line in status.tail(log.full_path).splitlines()])
    step: int | None = rate.report(0.0)["step"]
    return step

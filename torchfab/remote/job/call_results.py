"""The results of a function call, which `shims/call.py` wrote into the job's folder on this node.

Only regular files of this user in the job's folder, which is private, are read: so only data written by this job is
unpickled on the launch machine.
"""

from __future__ import annotations

import base64
import os
import re
import stat

from torchfab.remote import job_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FOLDER = "files"
_CHUNK_BYTES = 4 * 1024 * 1024
_NAME = re.compile(r"(result|failure)-(\d+)\.(pickle|json)")


def outcomes(request: dict[str, Any]) -> dict[str, Any]:
    """Return how each rank of this node ended.

    Parameters
    ----------
    request : dict
        `node_dir`, `job_id`, `node_rank`.

    Returns
    -------
    dict
        `ranks`: for each rank with a file, `rank`, `files` (size in bytes by name) and `failure` (None, or `time`,
        `type`, `message`, `traceback`).
    """
    found: dict[int, dict[str, Any]] = {}
    for path in _paths(job_files.folder_of(request)):
        match = _NAME.fullmatch(os.path.basename(path))
        if match is None:
            continue
        rank = int(match[2])
        entry = found.setdefault(rank, {"rank": rank, "files": {}, "failure": None})
        if match[3] == "json":
            entry["failure"] = job_files.read_json(path)
        else:
            entry["files"][match[1]] = os.path.getsize(path)
    return {"ranks": [found[rank] for rank in sorted(found)]}


def chunk(request: dict[str, Any]) -> dict[str, Any]:
    """Return a part of a pickled result, or of a pickled exception.

    Parameters
    ----------
    request : dict
        `node_dir`, `job_id`, `node_rank`, `rank`, `kind` (`result` or `failure`), `offset` (bytes).

    Returns
    -------
    dict
        `data`: at most 4 MiB, base64; `problems` where there is no such file.
    """
    name = f"{request['kind']}-{int(request['rank'])}.pickle"
    for path in _paths(job_files.folder_of(request)):
        if os.path.basename(path) == name and _NAME.fullmatch(name):
            return {"data": base64.b64encode(_read(path, request["offset"])).decode()}
    return {"problems": [{"what": f"{name} no longer exists on the node", "fix": "launch it again"}]}


def _paths(folder: str) -> list[str]:
    """Return the paths of regular files of this user in the folders of files of all processes."""
    found = []
    for process in job_files.processes(folder):
        parent = os.path.join(folder, process, FOLDER)
        try:
            names = os.listdir(parent)
        except OSError:
            continue
        found += [os.path.join(parent, name) for name in sorted(names)]
    return [path for path in found if _is_ours(os.lstat(path))]


def _is_ours(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def _read(path: str, offset: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if not _is_ours(os.fstat(fd)):
            return b""
        return os.pread(fd, _CHUNK_BYTES, offset)
    finally:
        os.close(fd)

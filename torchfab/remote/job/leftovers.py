"""Remove what killed processes leave behind outside the job's folder: shared memory, sockets, temporary folders.

A file is removed if its name is that of a training library's file, it belongs to this user, it was created while the
job ran, and no running process has it open or mapped. Only files that these libraries create anew in each run count.
"""

from __future__ import annotations

import os
import stat

from torchfab.remote import job_files
from torchfab.remote.host import shared_memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Torchelastic's logs. The others hold a socket: multiprocessing's listeners, torch's manager of shared memory.
_LOG_FOLDERS = ("torchelastic_",)
_SOCKET_FOLDERS = ("pymp-", "torch-shm-dir-")


def clear(folder: str) -> dict[str, int]:
    """Remove the files and folders that the job's processes on this node have left behind.

    Parameters
    ----------
    folder : str
        The job's folder on this node.

    Returns
    -------
    dict of str to int
        The removed shared memory (`files`, `bytes`) and the number of removed `folders`.
    """
    started = [record for name in job_files.processes(folder) if (record := _started(folder, name))]
    since = min((float(record["time"]) for record in started), default=float("inf"))
    own = os.getuid()
    shared = [(path, state) for path, state in shared_memory.orphans(since) if state.st_uid == own]
    folders = [each for parent in _temporary(folder) for each in _folders(parent, since)]
    if not shared and not folders:  # examining every process is expensive
        return {"files": 0, "bytes": 0, "folders": 0}
    used = shared_memory.Used()
    removed = [state.st_size for path, state in shared if not used.has_file(path, state) and _unlink(path)]
    gone = [path for path in folders if not used.has_folder(path) and _remove_folder(path)]
    return {"files": len(removed), "bytes": sum(removed), "folders": len(gone)}


def _started(folder: str, name: str) -> dict[str, Any]:
    return job_files.read_json(os.path.join(folder, name, job_files.STARTED)) or {}


def _temporary(folder: str) -> list[str]:
    specs = (
        job_files.read_json(os.path.join(folder, name, job_files.SPEC)) or {} for name in job_files.processes(folder)
    )
    return sorted({str((spec.get("env") or {}).get("TMPDIR") or "/tmp") for spec in specs})


def _folders(parent: str, since: float) -> list[str]:
    # A running process may have a folder for a socket that does not exist yet.
    holding = _own_folders(parent, _SOCKET_FOLDERS, since)
    has_socket = [path for path in holding if any(_is_socket(each) for each in shared_memory.entries(path))]
    return _own_folders(parent, _LOG_FOLDERS, since) + has_socket


def _own_folders(parent: str, prefixes: tuple[str, ...], since: float) -> list[str]:
    found = shared_memory.named(parent, prefixes, since)
    return [path for path, state in found if state.st_uid == os.getuid() and stat.S_ISDIR(state.st_mode)]


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _unlink(path: str) -> bool:
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


def _remove_folder(path: str) -> bool:
    import shutil  # imported here: few jobs leave a folder

    shutil.rmtree(path, ignore_errors=True)
    return not os.path.exists(path)

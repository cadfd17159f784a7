"""The disks of a node where something is written: job folders (logs), the working directory, /tmp and /dev/shm."""

from __future__ import annotations

import atexit
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BLOCK = b"torchfab" * 512  # one block, as an empty file can be made on a disk that is full


def look(workdir: str, node_dir: str, token: str) -> dict[str, Any]:
    """Return each place by name: `path`, `exists`, `free`, `size` (bytes), `free_files`, `filesystem`, `problem`.

    Parameters
    ----------
    token : str
        Name of a file that is made, and kept until this program ends, for other nodes to see; its path is `token` of
        the place. Empty: what is written is removed at once.
    """
    wanted = {"node_dir": os.path.abspath(os.path.expanduser(node_dir)), "workdir": workdir, "tmp": "/tmp"}
    found = {name: disk(path) for name, path in wanted.items()}
    found["node_dir"].update(_written(found["node_dir"]["at"], token))
    if token and os.path.isdir(workdir):
        found["workdir"]["token"] = _written(workdir, token)["token"]
    found["tmp"]["problem"] = _written("/tmp", "")["problem"]
    found["shm"] = disk("/dev/shm")
    return found


def disk(path: str) -> dict[str, Any]:
    """Return what `df` says of a path, or of the nearest folder above it that exists."""
    at = path
    while not os.path.isdir(at) and at != "/":
        at = os.path.dirname(at)
    told = os.statvfs(at)
    return {
        "path": path,
        "at": at,
        "exists": os.path.isdir(path),
        "enterable": os.access(at, os.R_OK | os.X_OK),
        "free": told.f_bavail * told.f_frsize,
        "size": told.f_blocks * told.f_frsize,
        "free_files": told.f_favail if told.f_files else None,
        "filesystem": filesystem(at),
    }


def filesystem(path: str) -> str:
    """Return the kind of file system (ext4, nfs4, tmpfs, ...) that holds a path, as /proc/self/mountinfo names it."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", errors="replace") as file:
            for line in file:
                words = line.split()
                if words[2] == wanted:
                    return words[words.index("-") + 1]
    except (OSError, ValueError):
        pass
    return ""


def _written(folder: str, token: str) -> dict[str, str]:
    """Write a block into a file of a folder; return its path where it is kept, and why it could not be written."""
    path = os.path.join(folder, token or f".torchfab-doctor-{os.urandom(6).hex()}")
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return {"token": "", "problem": error.strerror or str(error)}
    problem = ""
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            file.write(_BLOCK)
    except OSError as error:
        problem = error.strerror or str(error)
    if token and not problem:
        atexit.register(_remove, path)
        return {"token": path, "problem": ""}
    _remove(path)
    return {"token": "", "problem": problem}


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:  # somebody was faster
        pass

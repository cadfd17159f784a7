"""The file systems of a node that jobs write to: job folders (logs), the working directory, /tmp and /dev/shm."""

from __future__ import annotations

import atexit
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BLOCK = b"torchfab" * 512  # one block: a full disk still accepts an empty file


def collect(workdir: str, node_dir: str, token: str) -> dict[str, Any]:
    """Measure free space and test writing.

    Parameters
    ----------
    workdir, node_dir : str
        The working directory, and the folder that holds the job folders.
    token : str
        Name of a file to create for other nodes to find, and to keep until this program ends; its path is `token` of
        the place. Empty: the test file is removed at once.

    Returns
    -------
    dict
        By place (`node_dir`, `workdir`, `tmp`, `shm`): `path`, `exists`, `free` and `size` (bytes), `free_files`,
        `filesystem`, `problem`.
    """
    paths = {"node_dir": os.path.abspath(os.path.expanduser(node_dir)), "workdir": workdir, "tmp": "/tmp"}
    found = {name: disk(path) for name, path in paths.items()}
    found["node_dir"].update(_test_write(found["node_dir"]["at"], token))
    if token and os.path.isdir(workdir):
        found["workdir"]["token"] = _test_write(workdir, token)["token"]
    found["tmp"]["problem"] = _test_write("/tmp", "")["problem"]
    found["shm"] = disk("/dev/shm")
    return found


def disk(path: str) -> dict[str, Any]:
    """Measure the file system of a path, as `df` does.

    Parameters
    ----------
    path : str
        The path; if it does not exist, the nearest existing folder above it is measured.

    Returns
    -------
    dict
        `path`, `at` (the folder that was measured), `exists`, `enterable`, `free` and `size` (bytes), `free_files`
        (None if the file system does not count files), `filesystem`.
    """
    at = path
    while not os.path.isdir(at) and at != "/":
        at = os.path.dirname(at)
    stats = os.statvfs(at)
    return {
        "path": path,
        "at": at,
        "exists": os.path.isdir(path),
        "enterable": os.access(at, os.R_OK | os.X_OK),
        "free": stats.f_bavail * stats.f_frsize,
        "size": stats.f_blocks * stats.f_frsize,
        "free_files": stats.f_favail if stats.f_files else None,
        "filesystem": filesystem(at),
    }


def filesystem(path: str) -> str:
    """Return the type of the file system that holds a path, from /proc/self/mountinfo.

    Parameters
    ----------
    path : str
        An existing path.

    Returns
    -------
    str
        ext4, nfs4, tmpfs, ...; empty if unknown.
    """
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", errors="replace") as file:
            for line in file:
                fields = line.split()
                if fields[2] == number:
                    return fields[fields.index("-") + 1]
    except (OSError, ValueError):
        pass
    return ""


def _test_write(folder: str, token: str) -> dict[str, str]:
    """Write one block to a file in a folder; return its path if it is kept, and the problem if writing failed."""
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
    except OSError:  # already removed
        pass

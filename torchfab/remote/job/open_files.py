"""The files that processes have open for writing."""

from __future__ import annotations

import os

from torchfab.remote import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_DELETED = " (deleted)"
_KERNEL = ("/proc/", "/sys/", "/dev/")


def written_by(pids: Iterable[int], except_below: str = "") -> list[str]:
    """Return the files that processes have open for writing.

    Parameters
    ----------
    pids : iterable of int
        The processes; those of other users are left out.
    except_below : str
        A folder whose files are left out, such as that of the job's logs. Default: none.

    Returns
    -------
    list of str
        Paths of regular files, without duplicates.
    """
    found = dict.fromkeys(path for pid in pids for path in _written(pid))
    return [path for path in found if not (except_below and path.startswith(except_below + "/"))]


def _written(pid: int) -> list[str]:
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:  # it has ended, or belongs to another user
        return []
    return [path for number in numbers if (path := _path(pid, number)) and _is_for_writing(pid, number)]


def _path(pid: int, number: str) -> str:
    """Return the path of a regular file that has a name; empty for anything else."""
    try:
        path = os.readlink(f"/proc/{pid}/fd/{number}")
    except OSError:  # closed meanwhile
        return ""
    is_file = path.startswith("/") and not path.endswith(_DELETED) and not path.startswith(_KERNEL)
    return path if is_file and os.path.isfile(path) else ""


def _is_for_writing(pid: int, number: str) -> bool:
    for line in procfs.lines(f"/proc/{pid}/fdinfo/{number}"):
        if line.startswith("flags:"):
            return bool(int(line.split()[1], 8) & os.O_ACCMODE)
    return False

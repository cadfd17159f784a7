"""Measure the free space of the file systems that a job writes to."""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Querying a file server that does not answer would never return; the job's own folders are queried nevertheless.
_REMOTE = re.compile(r"^(?:nfs|lustre|gpfs|cifs|smb|beegfs|ceph|fuse|9p|afs|glusterfs|pvfs|wekafs|autofs)")
_NAMED = re.compile(r"[Ee]rrno:? (?:5|28|30|107|116|122)\\?\]?[^'\"\n]*['\"](/[^'\"\n]+)['\"]")
_MAX_NAMED, _MAX_BELOW = 8, 16


def of_job(folder: str, workdirs: list[str], text: str) -> list[dict[str, Any]]:
    """Return the disks of a job: of its folder and working directories, of /tmp and /dev/shm, and of failed writes.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    workdirs : list of str
        The working directories of its processes.
    text : str
        The text of its logs; paths in its error messages are included, too.

    Returns
    -------
    list of dict
        The folder's first, each with `path`, `free` and `size` (bytes, None if it cannot be read), `free_files`
        (inodes, None if they are not counted) and `read_only`.
    """
    mounts = _mounts()
    named = [_mount_point(path, mounts) for path in list(dict.fromkeys(_NAMED.findall(text)))[-_MAX_NAMED:]]
    below = [path for path in mounts if any(path.startswith(f"{each}/") for each in workdirs)][:_MAX_BELOW]
    asked = [path for path in (*named, *below) if path and not _REMOTE.match(mounts.get(path, ""))]
    always = [path for path in (folder, *workdirs, "/dev/shm", "/tmp") if os.path.isdir(path)]
    return [_disk(path) for path in dict.fromkeys([*always, *asked])]


def _mounts() -> dict[str, str]:
    """Return the type of each file system, by mount point."""
    found = {}
    try:
        with open("/proc/self/mountinfo", errors="surrogateescape") as file:
            for line in file:
                fields, _, rest = line.partition(" - ")
                parts = fields.split(" ")
                if len(parts) > 4:
                    found[_unescape(parts[4])] = rest.split(" ")[0]
    except OSError:
        pass
    return found


def _unescape(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _mount_point(path: str, mounts: dict[str, str]) -> str:
    holding = [each for each in mounts if path == each or path.startswith(f"{each.rstrip('/')}/")]
    return max(holding, key=len, default="")


def _disk(path: str) -> dict[str, Any]:
    try:
        stat = os.statvfs(path)
    except OSError:
        return {"path": path, "free": None, "size": None}
    return {
        "path": path,
        "free": stat.f_bavail * stat.f_frsize,
        "size": stat.f_blocks * stat.f_frsize,
        "free_files": stat.f_favail if stat.f_files else None,
        "read_only": bool(stat.f_flag & os.ST_RDONLY),
    }

"""The shared memory of a machine (/dev/shm): files of training libraries, and whether a running process uses them.

Only files that these libraries create anew in each run are considered, by their names.
"""

from __future__ import annotations

import os
import stat
import time

from torchfab.remote import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

FOLDER = "/dev/shm"
# torch; multiprocessing and loky; NCCL; CUDA; Open MPI, UCX, MPICH; Intel's OpenMP.
NAMES = (
    *("torch_", "psm_", "sem.", "loky-", "nccl-", "cuda.shm."),
    *("vader_segment.", "sm_segment.", "osc_rdma.", "osc_sm.", "ucx_shm_posix_", "mpich_shar_tmp"),
    "__KMP_REGISTERED_LIB_",
)
_MAKERS_NAME = r"(?:torch|__KMP_REGISTERED_LIB)_([0-9]{1,10})_"
_CLOCK_S = 1.0  # file times lag behind the clock a little
# A process may be about to open a file that was just created.
_SETTLED_S = 60.0
# Inodes of the namespaces that the kernel creates at boot (include/linux/proc_ns.h).
_FIRST_IPC, _FIRST_PID = "ipc:[4026531839]", "pid:[4026531836]"


def orphans(since: float) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files in shared memory whose creators may have ended; `Used` determines whether others use them.

    Parameters
    ----------
    since : float
        Files that were last changed before are left out; seconds since the epoch.

    Yields
    ------
    tuple of (str, os.stat_result)
        The path of a file and its state. Nothing is yielded if processes that /proc does not show may use this memory.
    """
    if _is_shared_unseen():
        return
    for path, state in named(FOLDER, NAMES, since):
        if stat.S_ISREG(state.st_mode) and not _has_living_maker(path):
            yield path, state


def _is_shared_unseen() -> bool:
    """Return whether processes that /proc does not show may use this memory, as in a container with --ipc=host."""
    return os.readlink("/proc/self/ns/ipc") == _FIRST_IPC and os.readlink("/proc/self/ns/pid") != _FIRST_PID


def named(parent: str, prefixes: tuple[str, ...], since: float) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the entries of a folder whose names have one of these prefixes.

    Parameters
    ----------
    parent : str
        The folder that holds them.
    prefixes : tuple of str
        The prefixes.
    since : float
        Entries that were last changed before are left out; seconds since the epoch.

    Yields
    ------
    tuple of (str, os.stat_result)
        A path and its state.
    """
    try:
        names = os.listdir(parent)
    except OSError:
        return
    for name in names:
        if name.startswith(prefixes):
            path = os.path.join(parent, name)
            try:
                state = os.lstat(path)
            except OSError:  # removed meanwhile
                continue
            if state.st_ctime >= since - _CLOCK_S:
                yield path, state


def _has_living_maker(path: str) -> bool:
    # A tensor that is being sent to another process may be mapped by none, and OpenMP maps its file only briefly. Both
    # write the creator's pid into the name.
    import re  # imported here: few jobs leave a file

    match = re.match(_MAKERS_NAME, os.path.basename(path))
    return match is not None and procfs.is_running(int(match[1]))


def entries(folder: str) -> list[str]:
    """Return the paths in a folder.

    Parameters
    ----------
    folder : str
        The folder.

    Returns
    -------
    list of str
        Empty if it cannot be read.
    """
    try:
        return [os.path.join(folder, name) for name in os.listdir(folder)]
    except OSError:
        return []


class Used:
    """The files that running processes of this user use; for root, those of all users."""

    def __init__(self) -> None:
        self.inodes: set[tuple[int, int]] = set()
        self.paths: list[bytes] = []  # of open files, working directories, sockets; and environments
        networks: set[str] = set()
        for pid in procfs.all_pids():
            self._add_maps(pid)
            self._add_open(pid)
            self.paths.append(procfs.raw_environment(pid))
            network = _link(f"/proc/{pid}/ns/net")
            if network and network not in networks:
                networks.add(network)
                self.paths.append(_read(f"/proc/{pid}/net/unix"))

    def _add_maps(self, pid: int) -> None:
        for line in _read(f"/proc/{pid}/maps").splitlines():
            fields = line.split(None, 5)
            if len(fields) == 6 and fields[4] != b"0":
                major, _, minor = fields[3].partition(b":")
                self.inodes.add((os.makedev(int(major, 16), int(minor, 16)), int(fields[4])))

    def _add_open(self, pid: int) -> None:
        for path in (f"/proc/{pid}/cwd", *entries(f"/proc/{pid}/fd")):
            self.paths.append(os.fsencode(_link(path)) + b"\n")
            try:
                state = os.stat(path)
            except OSError:  # closed meanwhile
                continue
            self.inodes.add((state.st_dev, state.st_ino))

    def has_file(self, path: str, state: os.stat_result) -> bool:
        """Return whether a running process has a file open or mapped.

        Parameters
        ----------
        path : str
            The file.
        state : os.stat_result
            The result of lstat for it.

        Returns
        -------
        bool
        """
        return (state.st_dev, state.st_ino) in self.inodes

    def has_folder(self, path: str) -> bool:
        """Return whether a running process works in a folder, has a file open in it, or names it in its environment.

        Parameters
        ----------
        path : str
            The folder.

        Returns
        -------
        bool
        """
        return any(os.fsencode(path) in each for each in self.paths)


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def unused() -> list[dict[str, Any]]:
    """Return the shared memory that belongs to processes that have ended, by user.

    Returns
    -------
    list of dict
        `user`, `files`, `bytes`. Only root can see whether a process of another user has a file open: for other users,
        only their own files are counted.
    """
    settled = time.time() - _SETTLED_S
    found = [(path, state) for path, state in orphans(0.0) if state.st_ctime < settled]
    found = [(path, state) for path, state in found if os.getuid() in (0, state.st_uid)]
    used = Used() if found else None
    total: dict[str, dict[str, Any]] = {}
    for path, state in found:
        if used is not None and not used.has_file(path, state):
            user = procfs.user_name(state.st_uid)
            of_user = total.setdefault(user, {"user": user, "files": 0, "bytes": 0})
            of_user["files"] += 1
            of_user["bytes"] += state.st_size
    return [total[user] for user in sorted(total)]

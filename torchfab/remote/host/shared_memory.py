"""The shared memory of a machine (/dev/shm): what training libraries made there, and whether a living process uses it.

Only names of files that these libraries make anew in each run are looked at.
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
_CLOCK_S = 1.0  # the times of files lag a little
# A process may be about to open what was made just now.
_SETTLED_S = 60.0
# Inodes of the namespaces that the kernel makes at boot (include/linux/proc_ns.h).
_FIRST_IPC, _FIRST_PID = "ipc:[4026531839]", "pid:[4026531836]"


def orphans(since: float) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files in shared memory whose makers may have ended; whether others use them is for `Used` to say.

    Parameters
    ----------
    since : float
        Files changed before are left out; seconds since the epoch.

    Yields
    ------
    tuple of (str, os.stat_result)
        The path of a file and its state. None where processes that /proc does not show here may use this memory.
    """
    if _is_shared_unseen():
        return
    for path, state in named(FOLDER, NAMES, since):
        if stat.S_ISREG(state.st_mode) and not _has_living_maker(path):
            yield path, state


def _is_shared_unseen() -> bool:
    """Return whether processes that /proc does not show here may use this memory: a container with --ipc=host."""
    return os.readlink("/proc/self/ns/ipc") == _FIRST_IPC and os.readlink("/proc/self/ns/pid") != _FIRST_PID


def named(parent: str, prefixes: tuple[str, ...], since: float) -> Iterator[tuple[str, os.stat_result]]:
    """Yield what has one of these names.

    Parameters
    ----------
    parent : str
        The folder that holds them.
    prefixes : tuple of str
        How their names begin.
    since : float
        What was changed before is left out; seconds since the epoch.

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
            except OSError:  # gone meanwhile
                continue
            if state.st_ctime >= since - _CLOCK_S:
                yield path, state


def _has_living_maker(path: str) -> bool:
    # A tensor on its way to another process may be mapped by none, and OpenMP maps its file for a moment only. Both
    # write the maker's pid into the name.
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
    """The files that living processes of this user use; root sees those of all users."""

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
        """Return whether a living process has a file open or mapped.

        Parameters
        ----------
        path : str
            The file.
        state : os.stat_result
            What lstat returned for it.

        Returns
        -------
        bool
        """
        return (state.st_dev, state.st_ino) in self.inodes

    def has_folder(self, path: str) -> bool:
        """Return whether a living process works in a folder, has something in it open, or names it in its environment.

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
    """Return how much of the shared memory belongs to processes that have ended, by user.

    Returns
    -------
    list of dict
        `user`, `files`, `bytes`. Only root knows whether a process of another user has a file open: for others, only
        their own files are counted.
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

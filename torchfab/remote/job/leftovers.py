"""Remove what killed processes leave behind outside the job's folder: shared memory, sockets, temporary folders.

A file is removed if its name is one that training libraries give, it belongs to this user, it was made while the job
ran, and no living process has it open or mapped. Only what these libraries make anew in each run is on the list.
"""

from __future__ import annotations

import os
import stat

from torchfab.remote import files, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

SHARED_MEMORY = "/dev/shm"
# torch; multiprocessing and loky; NCCL; CUDA; Open MPI, UCX, MPICH; Intel's OpenMP.
SHARED_NAMES = (
    *("torch_", "psm_", "sem.", "loky-", "nccl-", "cuda.shm."),
    *("vader_segment.", "sm_segment.", "osc_rdma.", "osc_sm.", "ucx_shm_posix_", "mpich_shar_tmp"),
    "__KMP_REGISTERED_LIB_",
)
# Torchelastic's logs. The others hold a socket: multiprocessing's listeners, torch's manager of shared memory.
_LOG_FOLDERS = ("torchelastic_",)
_SOCKET_FOLDERS = ("pymp-", "torch-shm-dir-")
_MAKERS_NAME = r"(?:torch|__KMP_REGISTERED_LIB)_([0-9]{1,10})_"
_CLOCK_S = 1.0  # the times of files lag a little
# Inodes of the namespaces that the kernel makes at boot (include/linux/proc_ns.h).
_FIRST_IPC, _FIRST_PID = "ipc:[4026531839]", "pid:[4026531836]"


def clear(folder: str) -> dict[str, int]:
    """Remove what the job's processes on this node have left.

    Parameters
    ----------
    folder : str
        The job's folder on this node.

    Returns
    -------
    dict of str to int
        `files` and `bytes` of shared memory, and `folders`: how much was removed.
    """
    started = [record for name in files.processes(folder) if (record := _started(folder, name))]
    since = min((float(record["time"]) for record in started), default=float("inf"))
    shared = [] if _shares_memory_unseen() else list(candidates(SHARED_MEMORY, SHARED_NAMES, since))
    folders = [each for parent in _temporary(folder) for each in _folders(parent, since)]
    if not shared and not folders:  # looking at every process is dear
        return {"files": 0, "bytes": 0, "folders": 0}
    used = Used()
    removed = [state.st_size for path, state in shared if not used.has_file(path, state) and _unlink(path)]
    gone = [path for path in folders if not used.has_folder(path) and _remove_folder(path)]
    return {"files": len(removed), "bytes": sum(removed), "folders": len(gone)}


def _started(folder: str, name: str) -> dict[str, Any]:
    return files.read_json(os.path.join(folder, name, files.STARTED)) or {}


def _temporary(folder: str) -> list[str]:
    specs = (files.read_json(os.path.join(folder, name, files.SPEC)) or {} for name in files.processes(folder))
    return sorted({str((spec.get("env") or {}).get("TMPDIR") or "/tmp") for spec in specs})


def _shares_memory_unseen() -> bool:
    """Return whether processes that /proc does not show here may use the shared memory: a container with --ipc=host."""
    return os.readlink("/proc/self/ns/ipc") == _FIRST_IPC and os.readlink("/proc/self/ns/pid") != _FIRST_PID


def candidates(parent: str, prefixes: tuple[str, ...], since: float) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the regular files of this user with certain names.

    Parameters
    ----------
    parent : str
        The folder that holds them.
    prefixes : tuple of str
        How their names begin.
    since : float
        Files changed before are left out; seconds since the epoch.

    Yields
    ------
    tuple of (str, os.stat_result)
        The path of a file and its state.
    """
    for path, state in _named(parent, prefixes, since):
        if stat.S_ISREG(state.st_mode) and not _has_living_maker(path):
            yield path, state


def _named(parent: str, prefixes: tuple[str, ...], since: float) -> Iterator[tuple[str, os.stat_result]]:
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
            if state.st_uid == os.getuid() and state.st_ctime >= since - _CLOCK_S:
                yield path, state


def _has_living_maker(path: str) -> bool:
    # A tensor on its way to another process may be mapped by none, and OpenMP maps its file for a moment only. Both
    # write the maker's pid into the name.
    import re  # imported here: few jobs leave a file

    match = re.match(_MAKERS_NAME, os.path.basename(path))
    return match is not None and procfs.is_running(int(match[1]))


def _folders(parent: str, since: float) -> list[str]:
    found = [path for path, state in _named(parent, _LOG_FOLDERS, since) if stat.S_ISDIR(state.st_mode)]
    # A living process may have such a folder without a socket in it.
    holding = [path for path, state in _named(parent, _SOCKET_FOLDERS, since) if stat.S_ISDIR(state.st_mode)]
    return found + [path for path in holding if any(_is_socket(each) for each in _entries(path))]


def _entries(folder: str) -> list[str]:
    try:
        return [os.path.join(folder, name) for name in os.listdir(folder)]
    except OSError:
        return []


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


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
        for path in (f"/proc/{pid}/cwd", *_entries(f"/proc/{pid}/fd")):
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

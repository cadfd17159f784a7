"""Files of a job on a node: written atomically, readable by their owner only.

Layout of the folder of a job on one node (mode 0700; a shared home folder holds one such folder per node):

    <node_dir>/jobs/<job id>/node-<node_rank>/
        node.py                 the program that runs here (see `torchfab.transport.bundle`)
        go                      written when all nodes are ready: the processes may start
        stop.json               a stop was requested: its time, its grace period, and whether launchers may end yet
        <process>/              "agent", "rank-3", ...
            spec.json           argv, environment by name and value, working directory
            secrets.json        the secret part of the environment; the supervisor reads and removes it
            ready               pid of the supervisor, written once it is up
            started.json        pids, start times, boot id
            ranks.json          the ranks found below the process: pid, start, end, exit code
            cgroup.json         the control group of the process and its descendants
            ranks-ended             exists once a requested end has ended all ranks; their launcher may still run
            exit.json           exit code or signal of the process, and the time
            output.log          stdout and stderr of the process
            before.log, after.log   output of --before and --after, in the folder of one process of the node
            timeline            one line "time size path" per growth of a log file
            window              a FIFO, until the process's tmux window and the supervisor have opened it
            errors/, logs/      files that the launcher itself writes
"""

from __future__ import annotations

import errno
import os

from torchfab.remote import light_stdlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SPEC, SECRETS, STARTED, RANKS, EXIT = "spec.json", "secrets.json", "started.json", "ranks.json", "exit.json"
STOP, OUTPUT, TIMELINE, BUNDLE = "stop.json", "output.log", "timeline", "node.py"
BEFORE_LOG, AFTER_LOG = "before.log", "after.log"
READY, GO, RANKS_ENDED, CGROUP = "ready", "go", "ranks-ended", "cgroup.json"
WINDOW, ERRORS = "window", "supervisor-errors"

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_RESERVED_BYTES = 4096


def job_folder(node_dir: str, job_id: str, node_rank: int) -> str:
    """Return the folder of one job on one node.

    Parameters
    ----------
    node_dir : str
        The folder of torchfab's files on the node; a leading `~` is the user's home folder.
    job_id : str
        Id of the job.
    node_rank : int
        Rank of the node in the job.

    Returns
    -------
    str
        An absolute path.
    """
    return os.path.join(os.path.abspath(os.path.expanduser(node_dir)), "jobs", job_id, f"node-{node_rank}")


def folder_of(request: dict[str, Any]) -> str:
    """Return the folder of the job that a request names, on its node.

    Parameters
    ----------
    request : dict
        `node_dir`, `job_id`, `node_rank`.

    Returns
    -------
    str
        An absolute path.
    """
    return job_folder(request["node_dir"], request["job_id"], request["node_rank"])


def make_private(folder: str) -> None:
    """Create a folder and its missing parents, readable by their owner only.

    Parameters
    ----------
    folder : str
        The path; it may exist already.
    """
    parent = os.path.dirname(folder)
    if not os.path.isdir(parent):
        make_private(parent)
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:  # it existed before, or another node that shares the file system has just made it
        pass


def write_text(path: str, text: str) -> None:
    """Write a file atomically: a reader sees the old file or the whole new one, also after a power cut.

    Parameters
    ----------
    path : str
        The file; it gets mode 0600.
    text : str
        Its content.
    """
    # The temporary name is random: nodes that share a file system can have equal pids.
    temporary = f"{path}.{os.urandom(4).hex()}.new"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def write_json(path: str, value: Any) -> None:
    """Write a JSON file atomically; on a full disk, write into the space that `reserve_space` has reserved.

    Parameters
    ----------
    path : str
        The file; it gets mode 0600.
    value : object
        Any JSON value.
    """
    text = light_stdlib.dumps(value)
    try:
        write_text(path, text)
    except OSError as error:
        if error.errno not in _DISK_FULL or not _write_into_reserved_space(path, text):
            raise


def reserve_space(path: str, times: int = 1) -> None:
    """Reserve disk space now for a file that must be written later, even if the disk is full by then.

    Parameters
    ----------
    path : str
        The file to be written later.
    times : int
        How often it will be written, at most 2. Default 1.
    """
    for placeholder in _placeholders(path)[:times]:
        try:  # no fsync, which is slow: the write alone reserves the space
            with open(placeholder, "w", opener=_private) as file:
                file.write(" " * _RESERVED_BYTES)
        except OSError:  # the disk is full already
            return


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def release_space(path: str) -> None:
    """Release the disk space that is still reserved for a file.

    Parameters
    ----------
    path : str
        The file, as given to `reserve_space`.
    """
    for placeholder in _placeholders(path):
        try:
            os.unlink(placeholder)
        except OSError:  # already used, or never reserved
            pass


def _placeholders(path: str) -> list[str]:
    return [f"{path}.room{number}" for number in range(2)]


def _write_into_reserved_space(path: str, text: str) -> bool:
    """Write text over the blanks of an existing placeholder and rename it to `path`; return whether that worked."""
    data = text.encode("utf-8", "surrogateescape")
    for placeholder in _placeholders(path):
        if len(data) > _RESERVED_BYTES or not os.path.exists(placeholder):
            continue
        with open(placeholder, "r+b") as file:  # JSON parsers ignore the trailing blanks
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(placeholder, path)
        return True
    return False


def read_json(path: str) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    path : str
        The file.

    Returns
    -------
    object
        Its content; None if the file is missing, unreadable or not JSON.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return light_stdlib.loads(file.read())
    except (OSError, ValueError):
        return None


def processes(folder: str) -> list[str]:
    """Return the names of the job's processes on this node.

    Parameters
    ----------
    folder : str
        The job's folder on this node.

    Returns
    -------
    list of str
        In the order of their ranks.
    """
    try:
        names = [name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name, SPEC))]
    except OSError:
        return []
    return sorted(names, key=lambda name: (len(name), name))


def remove_job_folder(folder: str) -> None:
    """Remove a job's folder on this node, and its parent if no other node's folder is left in it.

    Parameters
    ----------
    folder : str
        As `job_folder` returns it.
    """
    import shutil  # imported here: a successful launch removes nothing

    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rmdir(os.path.dirname(folder))
    except OSError:  # other nodes of the job share this file system
        pass

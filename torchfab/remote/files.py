"""Files of a job on a node: written atomically, readable by their owner only.

The folder of a job on one node (mode 0700; a shared home folder holds one such folder per node):

    <node_dir>/jobs/<job id>/node-<node_rank>/
        node.py                 what runs here (see `torchfab.transport.bundle`)
        go                      all nodes are ready: the processes may begin
        stop.json               somebody asked to stop the job: when, with which grace
        <process>/              "agent", "rank-3", ...
            spec.json           argv, environment by name and value, working directory
            secrets.json        the secret part of the environment; the supervisor removes it when it has read it
            ready               pid of the supervisor, once it is up
            started.json        pids, start times, boot id
            ranks.json          the ranks found below the process: pid, start, end, exit code
            exit.json           code or signal of the process, and when
            output.log          what the process wrote to stdout and stderr
            timeline            "time path size" a line: when each log file had grown to which size
            errors/, logs/      what the launcher itself writes
"""

from __future__ import annotations

import errno
import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SPEC, SECRETS, STARTED, RANKS, EXIT = "spec.json", "secrets.json", "started.json", "ranks.json", "exit.json"
STOP, OUTPUT, TIMELINE, BUNDLE = "stop.json", "output.log", "timeline", "node.py"
READY, GO = "ready", "go"

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ROOM_BYTES = 4096


def job_folder(node_dir: str, job_id: str, node_rank: int) -> str:
    """Return the absolute folder of one job on one node; `~` in `node_dir` is the user's home folder."""
    return os.path.join(os.path.abspath(os.path.expanduser(node_dir)), "jobs", job_id, f"node-{node_rank}")


def folder_of(request: dict[str, Any]) -> str:
    """Return the folder of the job on the node that a request names."""
    return job_folder(request["node_dir"], request["job_id"], request["node_rank"])


def make_private(folder: str) -> None:
    """Create `folder` and its missing parents, readable by their owner only."""
    parent = os.path.dirname(folder)
    if not os.path.isdir(parent):
        make_private(parent)
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:  # from before, or made by another node of a shared file system just now
        pass


def write_text(path: str, text: str) -> None:
    """Write `text` so that a reader sees the old file or the whole new one, also after a power cut; mode 0600."""
    # Nodes that share a file system can have equal pids.
    beside = f"{path}.{os.urandom(4).hex()}.new"
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        os.unlink(beside)
        raise


def write_json(path: str, value: Any) -> None:
    """Write `value` as JSON, atomically, mode 0600; on a full disk into room that `keep_room` has kept for it."""
    text = json.dumps(value)
    try:
        write_text(path, text)
    except OSError as error:
        if error.errno not in _FULL or not _write_into_room(path, text):
            raise


def keep_room(path: str, times: int = 1) -> None:
    """Take room on the disk now for a file that must be written later, `times` times, also when the disk is full."""
    for room in _rooms(path)[:times]:
        try:  # not flushed to the disk, which takes its time: the room is taken with the write
            with open(room, "w", opener=_private) as file:
                file.write(" " * _ROOM_BYTES)
        except OSError:  # it is full already
            return


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def give_up_room(path: str) -> None:
    """Give back the room that was kept for a file."""
    for room in _rooms(path):
        try:
            os.unlink(room)
        except OSError:  # used, or never taken
            pass


def _rooms(path: str) -> list[str]:
    return [f"{path}.room{number}" for number in range(2)]


def _write_into_room(path: str, text: str) -> bool:
    """Write text over the blanks of a file that is there already, and give it the name of `path`."""
    data = text.encode("utf-8", "surrogateescape")
    for room in _rooms(path):
        if len(data) > _ROOM_BYTES or not os.path.exists(room):
            continue
        with open(room, "r+b") as file:  # blanks after the JSON are no part of it
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(room, path)
        return True
    return False


def read_json(path: str) -> Any:
    """Return the JSON in `path`, or None where there is no such file or it is not JSON."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def processes(folder: str) -> list[str]:
    """Return the names of the processes that the job has on this node, in the order of their ranks."""
    try:
        names = [name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name, SPEC))]
    except OSError:
        return []
    return sorted(names, key=lambda name: (len(name), name))

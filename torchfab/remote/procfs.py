"""/proc, read for what a supervisor must know: who descends from whom, and who carries a job's id.

A process is named by its pid and its start time (`man 5 proc`, field 22 of stat), so that a reused pid is never
mistaken for the process that had it before.
"""

from __future__ import annotations

import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

JOB_ID, NODE_RANK = "TORCHFAB_JOB_ID", "TORCHFAB_NODE_RANK"


def boot_id() -> str:
    """Return the id of this boot of the machine: another one after a reboot."""
    return _read("/proc/sys/kernel/random/boot_id").decode().strip()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # gone, or another user's
        return b""


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the third (state) on; empty when there is no such process."""
    text = _read(f"/proc/{pid}/stat")
    # The second field is the program's name in parentheses and may hold blanks and parentheses itself.
    return text[text.rfind(b")") + 2 :].decode().split() if text else []


def start_time(pid: int) -> int:
    """Return when `pid` started, in clock ticks since boot; 0 when there is no such process."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields else 0


def is_alive(pid: int, started: int) -> bool:
    """Say whether the process that had `pid` and start time `started` still runs (a zombie does not)."""
    fields = stat_fields(pid)
    return bool(fields) and int(fields[19]) == started and fields[0] not in "ZX"


def exit_code_of_zombie(pid: int) -> int | None:
    """Return the exit code of a process that has ended and is not yet reaped: negative for a signal, None if unknown.

    The kernel keeps it in field 52 of stat, in the form of wait(2), readable by the same user.
    """
    fields = stat_fields(pid)
    if len(fields) < 50 or fields[0] != "Z":
        return None
    return os.waitstatus_to_exitcode(int(fields[49]))


def environment(pid: int) -> dict[str, str]:
    """Return the environment that `pid` was started with; empty when it cannot be read."""
    words = _read(f"/proc/{pid}/environ").split(b"\0")
    pairs = (word.decode(errors="surrogateescape").partition("=") for word in words if b"=" in word)
    return {name: value for name, _, value in pairs}


def all_pids() -> list[int]:
    """Return the pid of every process that this user can see."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def parents() -> dict[int, int]:
    """Return, for every process, its parent's pid."""
    table = {}
    for pid in all_pids():
        fields = stat_fields(pid)
        if fields:
            table[pid] = int(fields[1])
    return table


def children(pid: int) -> list[int]:
    """Return the direct children of `pid`, whichever of its threads started them."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        found += [int(word) for word in _read(f"/proc/{pid}/task/{thread}/children").split()]
    return found


def descendants(roots: Iterable[int]) -> list[int]:
    """Return every process below `roots`, without them, nearest first; ended ones that nobody reaped are left out."""
    below: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        below.setdefault(parent, []).append(pid)
    found: list[int] = []
    queue = list(roots)
    while queue:
        next_pids = below.get(queue.pop(0), [])
        found += next_pids
        queue += next_pids
    return [pid for pid in found if stat_fields(pid)[:1] not in ([], ["Z"], ["X"])]


def job_processes(job_id: str, node_rank: int) -> list[int]:
    """Return every process of the job on this node: those that carry its id, and all that descends from them.

    The job's id is in the environment that each process was started with, so a process that left its session and its
    parents is still found; a process that overwrote its environment (setproctitle does) is found through its parents.
    """
    mine = os.getpid()
    marked = [pid for pid in all_pids() if pid != mine and _carries(pid, job_id, node_rank)]
    if not marked:  # the proof that nothing is left costs one look at every process, not two
        return []
    both = dict.fromkeys(marked + descendants(marked))
    return [pid for pid in both if pid != mine and is_running(pid)]


def _carries(pid: int, job_id: str, node_rank: int) -> bool:
    raw = b"\0" + _read(f"/proc/{pid}/environ")
    return (f"\0{JOB_ID}={job_id}\0".encode() in raw) and (f"\0{NODE_RANK}={node_rank}\0".encode() in raw)


def running_program(path: str) -> list[int]:
    """Return the processes of `python -I -S <path>`.

    The words are compared in their places: the tmux server keeps the command line of the client that began it, and that
    ends with the command of the first supervisor.
    """
    words = [b"-I", b"-S", os.fsencode(path)]
    found = [pid for pid in all_pids() if _read(f"/proc/{pid}/cmdline").split(b"\0")[1:4] == words]
    return [pid for pid in found if is_running(pid)]


def is_running(pid: int) -> bool:
    """Say whether there is a process `pid` that has not ended."""
    return stat_fields(pid)[:1] not in ([], ["Z"], ["X"])


def await_end(pids: Iterable[int], timeout_s: float) -> None:
    """Wait until all of these processes have ended, or so many seconds have passed; the kernel says when."""
    deadline = time.monotonic() + timeout_s
    for pid in pids:
        left_s = max(0.0, deadline - time.monotonic())
        try:
            handle = os.pidfd_open(pid)  # type: ignore[attr-defined,unused-ignore]
        except ProcessLookupError:
            continue
        except (OSError, AttributeError):  # a kernel before 5.3
            _poll_end(pid, left_s)
            continue
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            poll.poll(1000 * left_s)
        finally:
            os.close(handle)


def _poll_end(pid: int, timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.02)


def find_below(root: int, wanted: Callable[[int], bool]) -> list[int]:
    """Return the topmost processes at or below `root` that are `wanted`; below a wanted one nothing is looked at."""
    found, queue = [], [root]
    while queue:
        pid = queue.pop(0)
        if wanted(pid):
            found.append(pid)
        else:
            queue += children(pid)
    return found


def command_line(pid: int) -> list[str]:
    """Return the words that `pid` was started with; none when they cannot be read."""
    return _read(f"/proc/{pid}/cmdline").decode(errors="surrogateescape").split("\0")[:-1]


def describe(pid: int) -> str:
    """Return `pid` with its command line, for people, at most 80 characters."""
    words = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    return f"{pid} ({words[:70] or 'ended'})"

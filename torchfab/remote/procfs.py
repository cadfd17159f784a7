"""Read /proc: process trees, processes that carry a job's id, and memory kills of a control group.

A process is identified by its pid and its start time (`man 5 proc`, field 22 of stat), so that a reused pid is never
mistaken for the process that had it before.
"""

from __future__ import annotations

import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

JOB_ID, NODE_RANK = "TORCHFAB_JOB_ID", "TORCHFAB_NODE_RANK"
_CGROUP_ROOT = "/sys/fs/cgroup"


def int_or_none(text: str) -> int | None:
    """Return the number that a text consists of: ASCII digits only.

    `²` counts as a digit, too, and int() rejects thousands of digits, so both are excluded.

    Parameters
    ----------
    text : str
        Output of another program or of the kernel.

    Returns
    -------
    int or None
        A number of at most 18 digits; None for everything else.
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # it does not exist, or this user may not read it
        return b""


def lines(path: str) -> list[str]:
    """Return the lines of a file of /proc.

    Parameters
    ----------
    path : str
        The file.

    Returns
    -------
    list of str
        Empty if it cannot be read.
    """
    return _read(path).decode(errors="replace").splitlines()


# ---- one process


def boot_id() -> str:
    """Return the id of this boot of the machine.

    Returns
    -------
    str
        A different id after each reboot.
    """
    return _read("/proc/sys/kernel/random/boot_id").decode().strip()


def clock() -> list[Any]:
    """Return the time since the machine's boot, which cannot be set, unlike the clock.

    Returns
    -------
    list
        The boot's id, and seconds: comparable for all processes of the machine.
    """
    return [boot_id(), time.monotonic()]


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the third (state) on.

    Parameters
    ----------
    pid : int
        The process.

    Returns
    -------
    list of str
        Empty when there is no such process.
    """
    text = _read(f"/proc/{pid}/stat")
    # The second field is the program's name in parentheses; it can contain blanks and parentheses itself.
    return text[text.rfind(b")") + 2 :].decode().split() if text else []


def status_field(pid: int, name: str) -> str:
    """Return a field of /proc/<pid>/status.

    Parameters
    ----------
    pid : int
        The process.
    name : str
        The field, without its colon: `SigCgt`.

    Returns
    -------
    str
        Empty when there is no such process or field.
    """
    for line in lines(f"/proc/{pid}/status"):
        if line.startswith(name + ":"):
            return line.partition(":")[2].strip()
    return ""


def handles(pid: int, number: int) -> bool:
    """Check whether a process has a handler of a signal.

    Parameters
    ----------
    pid : int
        The process.
    number : int
        The signal.

    Returns
    -------
    bool
        False also when there is no such process.
    """
    return _is_in_mask(pid, "SigCgt", number)


def ignores(pid: int, number: int) -> bool:
    """Check whether a process ignores a signal.

    Parameters
    ----------
    pid : int
        The process.
    number : int
        The signal.

    Returns
    -------
    bool
        False also when there is no such process.
    """
    return _is_in_mask(pid, "SigIgn", number)


def _is_in_mask(pid: int, name: str, number: int) -> bool:
    mask = status_field(pid, name)
    return bool(mask) and bool(int(mask, 16) >> (number - 1) & 1)


def start_time(pid: int) -> int:
    """Return when a process started.

    Parameters
    ----------
    pid : int
        The process.

    Returns
    -------
    int
        Clock ticks since boot; 0 when there is no such process.
    """
    fields = stat_fields(pid)
    return int(fields[19]) if fields else 0


def started_at(pid: int) -> float:
    """Return when a process started, by the machine's clock.

    Parameters
    ----------
    pid : int
        The process.

    Returns
    -------
    float
        Seconds since the epoch; 0 when there is no such process.
    """
    ticks = start_time(pid)
    up_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - up_s + ticks / os.sysconf("SC_CLK_TCK") if ticks else 0.0


def is_alive(pid: int, started: int) -> bool:
    """Check whether a process still runs; a zombie does not.

    Parameters
    ----------
    pid : int
        Its pid.
    started : int
        Its start time, as `start_time` returns it.

    Returns
    -------
    bool
        False also when the pid now belongs to another process.
    """
    fields = stat_fields(pid)
    return bool(fields) and int(fields[19]) == started and (fields[0] not in "ZX" or _has_threads(pid))


def is_running(pid: int) -> bool:
    """Check whether a process with this pid exists and has not ended.

    Parameters
    ----------
    pid : int
        The process.

    Returns
    -------
    bool
        False for a zombie.
    """
    state = stat_fields(pid)[:1]
    return state not in ([], ["Z"], ["X"]) or (bool(state) and _has_threads(pid))


def _has_threads(pid: int) -> bool:
    # A main thread that has ended (pthread_exit) is a zombie while other threads of its process run.
    try:
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def exit_code_of_zombie(pid: int) -> int | None:
    """Return the exit code of a process that has ended and is not yet reaped.

    The kernel keeps it in field 52 of stat, in the form of wait(2), readable by the same user.

    Parameters
    ----------
    pid : int
        The process.

    Returns
    -------
    int or None
        Negative for a signal; None if unknown.
    """
    fields = stat_fields(pid)
    if len(fields) < 50 or fields[0] != "Z":
        return None
    return os.waitstatus_to_exitcode(int(fields[49]))


def environment(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with.

    Parameters
    ----------
    pid : int
        The process.

    Returns
    -------
    dict of str to str
        Empty when it cannot be read.
    """
    entries = raw_environment(pid).split(b"\0")
    pairs = (entry.decode(errors="surrogateescape").partition("=") for entry in entries if b"=" in entry)
    return {name: value for name, _, value in pairs}


def raw_environment(pid: int) -> bytes:
    """Return the environment that a process was started with, in the kernel's form.

    Parameters
    ----------
    pid : int
        The process. If its main thread has ended, another thread of it is read.

    Returns
    -------
    bytes
        `NAME=value` with a NUL after each; empty if it cannot be read.
    """
    raw = _read(f"/proc/{pid}/environ")
    if raw or stat_fields(pid)[:1] != ["Z"]:
        return raw
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return b""
    return next((raw for thread in threads if (raw := _read(f"/proc/{pid}/task/{thread}/environ"))), b"")


def command_line(pid: int) -> list[str]:
    """Return the argv of a process.

    Parameters
    ----------
    pid : int
        The process.

    Returns
    -------
    list of str
        Empty when it cannot be read.
    """
    return _read(f"/proc/{pid}/cmdline").decode(errors="surrogateescape").split("\0")[:-1]


def describe(pid: int) -> str:
    """Return a pid with its command line, human-readable.

    Parameters
    ----------
    pid : int
        The process.

    Returns
    -------
    str
        At most 80 characters.
    """
    command = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    return f"{pid} ({command[:70] or 'ended'})"


# ---- process trees


def all_pids() -> list[int]:
    """Return the pid of every process that this user can see.

    Returns
    -------
    list of int
        In the order of the directory, unsorted.
    """
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def parents() -> dict[int, int]:
    """Return the parent of every process.

    Returns
    -------
    dict of int to int
        Parent's pid by pid.
    """
    table = {}
    for pid in all_pids():
        fields = stat_fields(pid)
        if fields:
            table[pid] = int(fields[1])
    return table


def children(pid: int) -> list[int]:
    """Return the direct children of a process, whichever of its threads started them.

    Parameters
    ----------
    pid : int
        The process.

    Returns
    -------
    list of int
        Empty when the process has ended.
    """
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        found += [int(child) for child in _read(f"/proc/{pid}/task/{thread}/children").split()]
    return found


def descendants(roots: Iterable[int]) -> list[int]:
    """Return every running process below `roots`, nearest first.

    Parameters
    ----------
    roots : iterable of int
        The processes to start from.

    Returns
    -------
    list of int
        Without the roots themselves and without zombies.
    """
    below: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        below.setdefault(parent, []).append(pid)
    found: list[int] = []
    queue = list(roots)
    while queue:
        next_pids = below.get(queue.pop(0), [])
        found += next_pids
        queue += next_pids
    return [pid for pid in found if is_running(pid)]


def find_below(root: int, matches: Callable[[int], bool]) -> list[int]:
    """Return the topmost processes at or below `root` that match a condition.

    Parameters
    ----------
    root : int
        Pid of the process to start from.
    matches : callable
        Takes a pid and returns whether it matches. The search does not descend below a match.

    Returns
    -------
    list of int
        Their pids, nearest first.
    """
    found, queue = [], [root]
    while queue:
        pid = queue.pop(0)
        if matches(pid):
            found.append(pid)
        else:
            queue += children(pid)
    return found


def is_foreign(pid: int) -> bool:
    """Return whether this user may not signal a process: it belongs to another user.

    Parameters
    ----------
    pid : int
        The process.

    Returns
    -------
    bool
        False for a process that has ended.
    """
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def owner(pid: int) -> str:
    """Return the name of the user of a process, or the number if it has no name.

    Parameters
    ----------
    pid : int
        The process.

    Returns
    -------
    str
        Empty when there is no such process.
    """
    try:
        return user_name(os.stat(f"/proc/{pid}").st_uid)
    except OSError:
        return ""


def user_name(uid: int) -> str:
    """Return the name of a user, or the number if it has no name.

    Parameters
    ----------
    uid : int
        The user's number.

    Returns
    -------
    str
    """
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def running_program(path: str) -> list[int]:
    """Return the processes of `python -I -S <path>`.

    The arguments are compared by position: the tmux server has the command line of the client that started it, which
    ends with the command of the first supervisor.

    Parameters
    ----------
    path : str
        The program, as written on the command line.

    Returns
    -------
    list of int
        Their pids.
    """
    args = [b"-I", b"-S", os.fsencode(path)]
    found = [pid for pid in all_pids() if _read(f"/proc/{pid}/cmdline").split(b"\0")[1:4] == args]
    return [pid for pid in found if is_running(pid)]


def await_end(pids: Iterable[int], timeout_s: float) -> None:
    """Wait until all of these processes have ended, or the timeout has passed; a pidfd reports each end.

    Parameters
    ----------
    pids : iterable of int
        The processes.
    timeout_s : float
        Time limit for all of them together, in seconds.
    """
    deadline = time.monotonic() + timeout_s
    for pid in pids:
        left_s = max(0.0, deadline - time.monotonic())
        try:
            pidfd = os.pidfd_open(pid)  # type: ignore[attr-defined,unused-ignore]
        except ProcessLookupError:
            continue
        except (OSError, AttributeError):  # a kernel before 5.3
            _poll_end(pid, left_s)
            continue
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(1000 * left_s)
        finally:
            os.close(pidfd)


def _poll_end(pid: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)


# ---- memory kills of a control group


def oom_kills(pid: str = "self") -> int | None:
    """Return how many processes of a process's control group the kernel has killed for memory.

    With cgroup v2 the number is `oom_kill` of memory.events, which includes the groups below; with v1, `oom_kill` of
    memory.oom_control. It is the only evidence of such a kill that needs no permission to read the kernel log.

    Parameters
    ----------
    pid : str
        The process. Default: this process.

    Returns
    -------
    int or None
        None if the control group does not report it.
    """
    for line in lines(f"/proc/{pid}/cgroup"):
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":
            count = _oom_kill_count(f"{_CGROUP_ROOT}{path}/memory.events")
        elif "memory" in controllers.split(","):
            count = _oom_kill_count(f"{_CGROUP_ROOT}/memory{path}/memory.oom_control")
        else:
            continue
        if count is not None:
            return count
    return None


def _oom_kill_count(path: str) -> int | None:
    for line in lines(path):
        name, _, value = line.partition(" ")
        if name == "oom_kill" and (count := int_or_none(value)) is not None:
            return count
    return None

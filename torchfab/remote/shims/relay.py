"""The relay of a node: `relay.py await` waits for one command; `relay.py deliver TEXT`, run by the head, sends it.

The launcher's ssh does not run its command on the node: it delivers it to the relay, which is a child of the node's
supervisor. Therefore logs, exit code and `stop` work as for any other process of the job, and the command has the
environment that the plan gave to the node, including secrets, which the launcher's ssh does not have.

Needs only the standard library of Python 3.9: the output of a dry run, pasted into bash, has no other modules.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


HERE = os.path.dirname(os.path.abspath(__file__))
COMMAND, WAITING, END = (os.path.join(HERE, name) for name in ("command.json", "door.json", "end.json"))
COMMAND_TIMEOUT_S = 600.0  # a head that has sent nothing by then has failed
RELAY_TIMEOUT_S = 60.0
POLL_S = 0.05
GRACE_S = 10.0
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def serve() -> int:
    """Wait for the command and run it; end it when the process that delivered it has ended.

    Returns
    -------
    int
        The command's exit code.
    """
    write_json(WAITING, own_process())
    command = wait_for(lambda: read_json(COMMAND), COMMAND_TIMEOUT_S)
    if command is None:
        print(f"torchfab: the head sent no command within {COMMAND_TIMEOUT_S:g} s", flush=True)
        return 1
    child = start(command["text"])
    code = watch(child, command) or first_failed_code()
    write_json(END, {"code": code})
    return code


def start(text: str) -> subprocess.Popen[bytes]:
    """Start the command. From now on, signals are forwarded to it, including those that arrive while it starts.

    Parameters
    ----------
    text : str
        The command, as shell.

    Returns
    -------
    subprocess.Popen
        The command, in a session of its own.
    """
    early: list[int] = []
    for number in FORWARDED:
        signal.signal(number, lambda received, _: early.append(received))
    child = subprocess.Popen(["/bin/sh", "-c", text], start_new_session=True)
    for number in FORWARDED:
        signal.signal(number, lambda received, _: signal_session(child, received))
    for received in early:
        signal_session(child, received)
    return child


def watch(child: subprocess.Popen[bytes], sender: dict[str, Any]) -> int:
    """Wait for the child; end it if its sender ends first.

    Parameters
    ----------
    child : subprocess.Popen
        The command.
    sender : dict
        `pid` and `start` of the process that delivered it.

    Returns
    -------
    int
        The child's exit code; 1 if it was ended.
    """
    while child.poll() is None:
        if not is_alive(sender):
            print("torchfab: the head has closed the connection", flush=True)
            signal_session(child, signal.SIGTERM)
            if wait_for(lambda: child.poll() is not None, GRACE_S) is None:
                signal_session(child, signal.SIGKILL)
            return 1
        time.sleep(POLL_S)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def first_failed_code() -> int:
    """Return the exit code of the rank that failed first, as recorded by the supervisor.

    The daemon of Open MPI exits with 0 even if its ranks have failed.

    Returns
    -------
    int
        0 if no rank has failed.
    """
    failed = [rank for rank in read_json(os.path.join(HERE, "ranks.json")) or [] if rank["ended"] and rank["code"]]
    code = int(min(failed, key=lambda rank: rank["ended"])["code"]) if failed else 0
    return code if code >= 0 else 128 - code


def signal_session(child: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the process group of the command.

    Parameters
    ----------
    child : subprocess.Popen
        The command.
    number : int
        The signal.
    """
    try:
        os.killpg(child.pid, number)
    except OSError:  # it has just ended
        pass


def deliver(text: str) -> int:
    """Deliver a command to the relay of this node and wait for its end.

    Parameters
    ----------
    text : str
        The command, as shell.

    Returns
    -------
    int
        The command's exit code; 0 if the relay already has a command; 255 if there is no relay, or on disconnection.
    """
    if not write_json(COMMAND, {"text": text, **own_process()}, only_first=True):
        print("torchfab: this node already has its command; another one is not run", file=sys.stderr)
        return 0
    if wait_for(lambda: read_json(WAITING), RELAY_TIMEOUT_S) is None:
        print(f"torchfab: no relay waits in {HERE}", file=sys.stderr)
        return 255
    relay = read_json(WAITING)
    while not is_disconnected() and (is_alive(relay) or read_json(END)):
        end = read_json(END)
        if end:
            return int(end["code"])
        time.sleep(POLL_S)
    return 255


def is_disconnected() -> bool:
    """Return whether the reader of this process's stdout has closed it, because the ssh connection was lost.

    Returns
    -------
    bool
    """
    poll = select.poll()
    poll.register(1, 0)
    return bool(poll.poll(0))


def wait_for(condition: Callable[[], Any], timeout_s: float) -> Any:
    """Poll a condition until it is true.

    Parameters
    ----------
    condition : callable
        Called every POLL_S seconds.
    timeout_s : float
        Time limit in seconds.

    Returns
    -------
    object
        Its first true value; None after the time limit.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(POLL_S)
    return None


def own_process() -> dict[str, Any]:
    """Identify this process.

    Returns
    -------
    dict
        `pid` and `start`, its start time.
    """
    return {"pid": os.getpid(), "start": start_time(os.getpid())}


def is_alive(process: dict[str, Any]) -> bool:
    """Return whether a process still runs.

    Parameters
    ----------
    process : dict
        As `own_process` returns it.

    Returns
    -------
    bool
    """
    return bool(start_time(process["pid"]) == process["start"])


def start_time(pid: int) -> int | None:
    """Return the start time of a process.

    Parameters
    ----------
    pid : int
        The process.

    Returns
    -------
    int or None
        Ticks since boot; None if it does not run, or is a zombie.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return None
    return None if fields[0] in b"ZX" else int(fields[19])


def write_json(path: str, value: Any, only_first: bool = False) -> bool:
    """Write a JSON file atomically.

    Parameters
    ----------
    path : str
        The file.
    value : object
        Its content.
    only_first : bool
        Keep a file that exists. Default False.

    Returns
    -------
    bool
        Whether the file was written.
    """
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w") as file:
        json.dump(value, file)
    try:
        (os.link if only_first else os.replace)(temporary, path)
    except FileExistsError:
        return False
    finally:
        if only_first:
            os.unlink(temporary)
    return True


def read_json(path: str) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    path : str
        The file.

    Returns
    -------
    object
        Its content; None if it does not exist or does not hold JSON.
    """
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(serve() if sys.argv[1] == "await" else deliver(sys.argv[2]))

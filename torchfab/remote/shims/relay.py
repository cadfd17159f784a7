"""The door of a node, for a head on another node: `relay.py await` waits inside, `relay.py deliver TEXT` knocks.

The launcher's ssh brings one command to this node. It does not run it: it hands it to the process that already waits
here, which its supervisor answers for. So the command lives where the logs, the exit code and `stop` of this node look
for it, and with the environment that the plan gave to this node, secrets included, of which the launcher's ssh knows
nothing.

Stands alone (standard library, Python 3.9): a dry run that was pasted into bash has nothing else.
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
COMMAND, DOOR, END = (os.path.join(HERE, name) for name in ("command.json", "door.json", "end.json"))
PATIENCE_S = 600.0  # a head that has not come by then has failed before it came to us
KNOCK_S = 60.0
POLL_S = 0.05
GRACE_S = 10.0
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def wait_inside() -> int:
    """Wait for the command, run it, and return its exit code; end it when the one who brought it has gone."""
    write(DOOR, me())
    command = wait_for(lambda: read(COMMAND), PATIENCE_S)
    if command is None:
        print(f"torchfab: the head did not come within {PATIENCE_S:g} s", flush=True)
        return 1
    child = subprocess.Popen(["/bin/sh", "-c", command["text"]], start_new_session=True)
    for number in FORWARDED:
        signal.signal(number, lambda got, _: tell(child, got))
    code = watch(child, command) or code_of_ranks()
    write(END, {"code": code})
    return code


def watch(child: subprocess.Popen[bytes], visitor: dict[str, Any]) -> int:
    """Return how the child ends; if its visitor leaves before, end it."""
    while child.poll() is None:
        if not is_alive(visitor):
            print("torchfab: the head has hung up", flush=True)
            tell(child, signal.SIGTERM)
            if wait_for(lambda: child.poll() is not None, GRACE_S) is None:
                tell(child, signal.SIGKILL)
            return 1
        time.sleep(POLL_S)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def code_of_ranks() -> int:
    """Return the exit code of the rank that failed first, as our supervisor saw it; 0 when none did.

    The daemon of Open MPI ends well whatever its ranks did.
    """
    failed = [rank for rank in read(os.path.join(HERE, "ranks.json")) or [] if rank["ended"] and rank["code"]]
    code = int(min(failed, key=lambda rank: rank["ended"])["code"]) if failed else 0
    return code if code >= 0 else 128 - code


def tell(child: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to all that the command has started and that has not left its session."""
    try:
        os.killpg(child.pid, number)
    except OSError:  # it has just ended
        pass


def deliver(text: str) -> int:
    """Hand a command to the one who waits here; return its exit code when it has ended."""
    if not write(COMMAND, {"text": text, **me()}, only_first=True):
        print("torchfab: this node has had its command; another one is not run", file=sys.stderr)
        return 0
    if wait_for(lambda: read(DOOR), KNOCK_S) is None:
        print(f"torchfab: nobody waits in {HERE}", file=sys.stderr)
        return 255
    host = read(DOOR)
    while not has_hung_up() and (is_alive(host) or read(END)):
        end = read(END)
        if end:
            return int(end["code"])
        time.sleep(POLL_S)
    return 255


def has_hung_up() -> bool:
    """Say whether nobody reads our output any more: the connection is closed."""
    poll = select.poll()
    poll.register(1, 0)
    return bool(poll.poll(0))


def wait_for(ask: Callable[[], Any], patience_s: float) -> Any:
    """Return the first true answer; None when there is none in time."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        answer = ask()
        if answer:
            return answer
        time.sleep(POLL_S)
    return None


def me() -> dict[str, Any]:
    """Return who we are: a pid and its start time."""
    return {"pid": os.getpid(), "start": start_time(os.getpid())}


def is_alive(who: dict[str, Any]) -> bool:
    """Say whether that process still runs."""
    return bool(start_time(who["pid"]) == who["start"])


def start_time(pid: int) -> int | None:
    """Return when a process started, in ticks since boot; None when there is no such process (a zombie is none)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return None
    return None if fields[0] in b"ZX" else int(fields[19])


def write(path: str, value: Any, only_first: bool = False) -> bool:
    """Write JSON atomically; `only_first`: unless the file is there, and say whether it was not."""
    beside = f"{path}.{os.getpid()}"
    with open(beside, "w") as file:
        json.dump(value, file)
    try:
        (os.link if only_first else os.replace)(beside, path)
    except FileExistsError:
        return False
    finally:
        if only_first:
            os.unlink(beside)
    return True


def read(path: str) -> Any:
    """Return the JSON in a file; None when there is none."""
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(wait_inside() if sys.argv[1] == "await" else deliver(sys.argv[2]))

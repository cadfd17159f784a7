"""The head of a job: `head.py COMMAND...` runs the launcher, then notifies the relays that never got a command.

A launcher that fails early (a wrong option, an unreachable node) has not connected to every node. Without the
notification, the relays of the other nodes would keep waiting for it.

Needs only the standard library of Python 3.9: the output of a dry run, pasted into bash, has no other modules.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import rsh  # type: ignore[import-not-found]  # noqa: E402  # it lies beside this file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
NOTIFY_TIMEOUT_S = 15.0


def main(command: list[str]) -> int:
    """Run the launcher, then notify the waiting relays.

    Parameters
    ----------
    command : list of str
        The launcher's command.

    Returns
    -------
    int
        Its exit code.
    """
    code = start(command).wait()
    code = code if code >= 0 else 128 - code
    notify_relays(code)
    return code


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start the launcher. From now on, signals are forwarded to it, including those that arrive while it starts.

    Parameters
    ----------
    command : list of str
        The launcher's command.

    Returns
    -------
    subprocess.Popen
        The launcher.
    """
    early: list[int] = []
    for number in FORWARDED:
        signal.signal(number, lambda received, _: early.append(received))
    child = subprocess.Popen(command)
    for number in FORWARDED:
        signal.signal(number, lambda received, _: child.send_signal(received))
    for received in early:
        child.send_signal(received)
    return child


def notify_relays(code: int) -> None:
    """Send an `echo` as the command of every relay that still waits, to all at once.

    Parameters
    ----------
    code : int
        The launcher's exit code.
    """
    # The relays exit with 0: the head is the process that failed, and it exits after them.
    command = f"echo 'torchfab: the head ended with {code} before it reached this node'"
    os.environ["PATH"] = rsh.path_without(os.path.join(HERE, "bin"), os.environ.get("PATH", os.defpath))
    children = [subprocess.Popen(rsh.argv_for(node, command)) for node in waiting_nodes()]
    deadline = time.monotonic() + NOTIFY_TIMEOUT_S
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()


def waiting_nodes() -> list[dict[str, Any]]:
    """List the nodes whose relays have received no command.

    Returns
    -------
    list of dict
        Entries of nodes.json.
    """
    with open(os.path.join(HERE, "nodes.json")) as file:
        nodes = json.load(file)["nodes"]
    return [node for host, node in nodes.items() if node["gate"] and not os.path.exists(rsh.visited_marker(host))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

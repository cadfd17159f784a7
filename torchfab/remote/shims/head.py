"""The head of a job: `head.py COMMAND...` runs the launcher, and at its end tells the nodes to which it never came.

A launcher that fails early (a wrong option, no way to a node) has not been everywhere. The gates that nobody visited
would wait for it long after.

Stands alone (standard library, Python 3.9): a dry run that was pasted into bash has nothing else.
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
import rsh  # type: ignore[import-not-found]  # noqa: E402  # it lies beside us

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
PATIENCE_S = 15.0


def main(command: list[str]) -> int:
    """Run the launcher; return its exit code."""
    child = subprocess.Popen(command)
    for number in FORWARDED:
        signal.signal(number, lambda got, _: child.send_signal(got))
    code = child.wait()
    code = code if code >= 0 else 128 - code
    release(code)
    return code


def release(code: int) -> None:
    """Tell the gates that still wait that nothing will come, all at once."""
    # They end well: it is the head that failed, and it ends after them.
    words = f"echo 'torchfab: the head ended with {code} before it came here'"
    os.environ["PATH"] = rsh.without(os.path.join(HERE, "bin"), os.environ.get("PATH", os.defpath))
    visits = [subprocess.Popen(rsh.argv_for(node, words)) for node in unvisited()]
    deadline = time.monotonic() + PATIENCE_S
    for visit in visits:
        try:
            visit.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            visit.kill()


def unvisited() -> list[dict[str, Any]]:
    """Return the nodes whose gates wait."""
    with open(os.path.join(HERE, "nodes.json")) as file:
        nodes = json.load(file)["nodes"]
    return [node for host, node in nodes.items() if node["gate"] and not os.path.exists(rsh.visited(host))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Send job events to a command or URL. Delivery failures are logged and otherwise ignored."""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import shlex
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

_log = logging.getLogger(__name__)


class Notifier:
    """Sends events in the background, one after the other.

    Parameters
    ----------
    target : str
        A command, split into words as a shell would but run without a shell: it reads the event as JSON from stdin, and
        gets TORCHFAB_EVENT and TORCHFAB_JOB in its environment. Or an http(s) URL, to which the JSON is posted. Empty:
        nothing is sent.
    complain : callable
        Called with the text of each delivery failure.
    timeout_s : float
        Time limit in seconds for each event. Default 10.
    """

    def __init__(self, target: str, complain: Callable[[str], None], timeout_s: float = 10.0) -> None:
        self.target, self.complain, self.timeout_s = target, complain, timeout_s
        self.events: queue.Queue[Mapping[str, Any] | None] = queue.Queue()
        self.thread = threading.Thread(target=self._work, daemon=True)
        if target:
            self.thread.start()

    def send(self, event: Mapping[str, Any]) -> None:
        """Queue an event.

        Parameters
        ----------
        event : Mapping
            `job`, `event`, and further JSON values.
        """
        if self.target:
            self.events.put(event)

    def close(self) -> None:
        """Wait until all events are sent, at most twice the time limit of one event."""
        if self.target:
            self.events.put(None)
            self.thread.join(2 * self.timeout_s)

    def _work(self) -> None:
        while (event := self.events.get()) is not None:
            _log.debug("notify: sending %s", event.get("event"))
            try:
                _send(self.target, event, self.timeout_s)
                _log.debug("notify: sent")
            except Exception as error:  # no failure of a URL or a command may end the supervisor
                self.complain(f"--notify {_name(self.target)}: {error}")


def _name(target: str) -> str:
    """Return a target without the parts of a URL that may hold a secret."""
    if not target.startswith(("http://", "https://")):
        return target
    scheme, _, rest = target.partition("://")
    return f"{scheme}://{re.split('[/?#]', rest)[0].rpartition('@')[2]}"


def _send(target: str, event: Mapping[str, Any], timeout_s: float) -> None:
    body = json.dumps(event).encode()
    if target.startswith(("http://", "https://")):
        request = urllib.request.Request(target, body, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=timeout_s):
            return
    env = {**os.environ, "TORCHFAB_EVENT": str(event["event"]), "TORCHFAB_JOB": str(event["job"])}
    code, stderr = _run(shlex.split(target), body, env, timeout_s)
    if code:
        last = stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"it ended with code {code}" + (f": {last[0]}" if last else ""))


def _run(argv: list[str], body: bytes, env: Mapping[str, str], timeout_s: float) -> tuple[int, bytes]:
    """Run a command in its own session, so that a timeout also kills the processes that it started."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=env,
        start_new_session=True,
    )
    try:
        _, stderr = process.communicate(body, timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, stderr

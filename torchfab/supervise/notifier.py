"""Tell a command or a URL what happens; that this fails is told, and nothing more."""

from __future__ import annotations

import json
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


class Notifier:
    """Tell it in the background, one event after the other.

    Parameters
    ----------
    target : str
        A command, its words split as a shell would, without a shell: it reads the event as JSON from stdin, and finds
        TORCHFAB_EVENT and TORCHFAB_JOB in its environment. Or an http(s) URL, to which the JSON is posted. Empty: none.
    complain : callable
        Told what went wrong.
    timeout_s : float
        For each event. Default 10.
    """

    def __init__(self, target: str, complain: Callable[[str], None], timeout_s: float = 10.0) -> None:
        self.target, self.complain, self.timeout_s = target, complain, timeout_s
        self.events: queue.Queue[Mapping[str, Any] | None] = queue.Queue()
        self.thread = threading.Thread(target=self._work, daemon=True)
        if target:
            self.thread.start()

    def tell(self, event: Mapping[str, Any]) -> None:
        """Tell an event: `job`, `event`, and what else is known."""
        if self.target:
            self.events.put(event)

    def close(self) -> None:
        """Wait until all was told, at most for the time of two events."""
        if self.target:
            self.events.put(None)
            self.thread.join(2 * self.timeout_s)

    def _work(self) -> None:
        while (event := self.events.get()) is not None:
            try:
                _send(self.target, event, self.timeout_s)
            except Exception as error:  # whatever a URL or a command does, the job is worth more
                self.complain(f"--notify {_name(self.target)}: {error}")


def _name(target: str) -> str:
    """Return a target without the part of a URL that may be a secret."""
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
    """Run a command in a session of its own, so that what it has started ends with it when its time is over."""
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

"""The sshd of one node: start it, wait until it listens, find it again later, kill it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from testbed import processes
from testbed.allocation import find_program
from testbed.layout import NodeLayout, RehearsalError
from testbed.namespaces import prefix
from testbed.processes import Process

START_TIMEOUT_S = 10.0
POLL_S = 0.005


class Server:
    """One node's sshd, which a later process finds again by its record (pid and start time)."""

    def __init__(self, node: NodeLayout) -> None:
        self.node = node
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def _record(self) -> Path:
        return self.node.cluster.run_dir / f"{self.node.name}.sshd.json"

    @property
    def _log(self) -> Path:
        return self.node.directory / "sshd.log"

    @property
    def _pid_file(self) -> Path:
        return self.node.directory / "sshd.pid"  # sshd writes it when it listens

    def start(self) -> None:
        """Start it, in the node, in a session of its own, so that Ctrl-C in the terminal does not reach it."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd requires it when root runs it
        self._pid_file.unlink(missing_ok=True)
        sshd = str(find_program("sshd"))  # sshd must be called by its absolute path
        argv = (*prefix(self.node), sshd, "-D", "-e", "-f", str(self.node.directory / "sshd_config"))
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
            )
        if process := Process.of(self._child.pid):  # each word of the prefix execs the next: this pid becomes sshd's
            self._record.write_text(json.dumps(vars(process)))

    def wait(self) -> None:
        """Wait until it listens.

        Raises
        ------
        RehearsalError
            It ended, or needs longer than 10 s. The message has the end of its log.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._pid_file.exists():
            if (self._child and self._child.poll() is not None) or time.monotonic() > deadline:
                tail = self._log.read_text(errors="replace").strip().splitlines()[-3:]
                log_tail = " | ".join(tail) or "its log is empty"
                raise RehearsalError(f"the sshd of {self.node.name} did not start: {log_tail}")
            time.sleep(POLL_S)

    def process(self) -> Process | None:
        """Return the running sshd; None when it is down."""
        try:
            process = Process(**json.loads(self._record.read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return process if process.alive() else None

    def kill(self) -> None:
        """Kill the listener and every connection's sshd, but no process that they started."""
        if process := self.process():
            tree = processes.descendants({process})
            servers = {each for each in tree if _is_sshd(each)}
            for each in servers:
                each.signal(signal.SIGKILL)
            processes.end(lambda: {each for each in servers if each.alive()})
        self.reap()

    def reap(self) -> None:
        """Wait for the ended child, if it is ours, so that no zombie stays."""
        if self._child:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=START_TIMEOUT_S)
            self._child = None


def _is_sshd(process: Process) -> bool:
    try:
        return Path(f"/proc/{process.pid}/comm").read_text().startswith("sshd")
    except OSError:
        return False

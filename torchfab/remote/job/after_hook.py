"""Run `--after` when the last process of the job on a node has ended."""

from __future__ import annotations

import os
import time

from torchfab.remote import job_files
from torchfab.remote.job import hooks
from torchfab.remote.light_stdlib import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from torchfab.remote.child_process import Child
    from torchfab.remote.job.containment import Containment


class AfterHook:
    """`--after` of a job on a node; no method blocks.

    Parameters
    ----------
    folder : str
        The folder of the process that ended last.
    spec : dict
        Its spec: `after`, `after_timeout_s`, `cwd`.
    env : dict of str to str
        The environment of that process.
    """

    def __init__(self, folder: str, spec: dict[str, Any], env: dict[str, str]) -> None:
        self.folder, self.spec = folder, spec
        self.env = {**env, hooks.EXIT_CODE: str(hooks.exit_code(os.path.dirname(folder)))}
        self.log = os.path.join(folder, job_files.AFTER_LOG)
        self.limit = time.time() + spec["after_timeout_s"]
        self.child: Child | None = None

    def start(self, containment: Containment) -> None:
        """Start the hook; if that fails, write the reason into its log.

        Parameters
        ----------
        containment : Containment
            The control group that it belongs to.
        """
        try:
            with containment:
                self.child = hooks.start(self.spec["after"], self.spec["cwd"], self.env, self.log)
        except OSError as error:
            hooks.note(self.log, f"--after: it cannot be started: {error.strerror or error}")

    def on_stop(self) -> None:
        """Shorten its time limit, because a stop waits for it."""
        self.limit = min(self.limit, time.time() + hooks.STOPPED_S)

    def has_ended(self) -> bool:
        """Return whether it has ended; after its time limit, kill it with its process group.

        Returns
        -------
        bool
            Also True if it could not be started.
        """
        if self.child is None:
            return True
        code = self.child.returncode
        if code is None and time.time() < self.limit:
            return False
        if code is None:
            os.killpg(self.child.pid, signal.SIGKILL)  # not reaped yet: the pid is valid
            hooks.note(self.log, "--after: it took too long")
        elif code:
            hooks.note(self.log, f"--after: it ended with status {code if code >= 0 else 128 - code}")
        return True

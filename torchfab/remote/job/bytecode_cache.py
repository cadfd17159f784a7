"""Compile the supervisor's modules in the server, which has compiled some already; this halves its start-up time.

The compiled modules are in a file beside the program. Its first line identifies the interpreter; a different
interpreter ignores the file and compiles the source itself.
"""

from __future__ import annotations

import marshal
import os
import sys

from torchfab.remote import job_files

_MODULES = (
    *("job_files", "light_stdlib", "child_process", "procfs", "host", "host.cgroup", "host.shared_memory", "job"),
    *("job.supervisor", "job.process_watch", "job.exit_record", "job.start_barrier", "job.window_output"),
    *("job.containment", "job.log_files", "job.rank_tracker", "job.leftovers", "job.end_request", "job.clean_up"),
    *("job.graceful_end", "job.launcher_hold", "job.peer_end"),
)


def write(folder: str) -> None:
    """Write the compiled modules into a job's folder; without them, supervisors only start more slowly.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    """
    loader = sys.modules["torchfab.remote.job_files"].__loader__
    names = [f"torchfab.remote.{name}" for name in _MODULES]
    code = {name: loader.get_code(name) for name in names}  # type: ignore[union-attr]
    path = os.path.join(folder, job_files.BUNDLE + "c")
    try:
        handle = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(repr(sys.version).encode() + b"\n" + marshal.dumps(code))
        os.replace(path + ".new", path)
    except OSError:  # optional; on a full disk, the mandatory files report the error
        pass

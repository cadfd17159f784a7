"""Run the commands of `--before` and `--after` on a node; their output is written to a log file of the job."""

from __future__ import annotations

import os
import time

from torchfab.remote import child_process, job_files
from torchfab.remote.light_stdlib import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

# How long `--after` may take when the job was stopped: the stop waits for it.
STOPPED_S = 10.0
# Variables that identify a rank: a hook is not a rank.
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK")
EXIT_CODE = "TORCHFAB_EXIT_CODE"
_SHOWN_LINES = 12


def start(command: str, cwd: str, env: Mapping[str, str], log: str) -> child_process.Child:
    """Start a hook.

    Parameters
    ----------
    command : str
        Shell commands.
    cwd : str
        The working directory.
    env : mapping of str to str
        The environment of the job's processes on this node.
    log : str
        The file that its output is appended to.

    Returns
    -------
    Child

    Raises
    ------
    OSError
        The hook cannot be started.
    """
    environ = {name: value for name, value in env.items() if name not in _RANK_VARIABLES}
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return child_process.start(("/bin/sh", "-c", command), environ, cwd, output, child_process.end_with_parent)
    finally:
        os.close(output)


def await_end(process: child_process.Child, keeps_waiting: Callable[[], bool]) -> str:
    """Wait for the end of a hook.

    Parameters
    ----------
    process : Child
        The hook.
    keeps_waiting : callable
        Called until the hook has ended; waits briefly, and returns False to kill the hook and its process group.

    Returns
    -------
    str
        How it failed; empty if it ended with 0.
    """
    while (code := process.poll()) is None:
        if not keeps_waiting():
            os.killpg(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)
            return "it took too long"
    return f"it ended with status {code if code >= 0 else 128 - code}" if code else ""


def before(folder: str, request: dict[str, Any], env: Mapping[str, str], is_disturbed: Callable[[float], bool]) -> str:
    """Run `--before`, in phase two before any supervisor starts.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    request : dict
        `command`, `timeout_s` (seconds), and `process`: its `name` and `cwd`.
    env : mapping of str to str
        The environment of that process.
    is_disturbed : callable
        Waits for the given seconds; returns whether the launch machine has sent another request, or disconnected.

    Returns
    -------
    str
        How it failed, with the end of its output; empty if it ended with 0.
    """
    own = os.path.join(folder, request["process"]["name"])
    job_files.make_private(own)
    log, timeout_s = os.path.join(own, job_files.BEFORE_LOG), request["timeout_s"]
    deadline = time.monotonic() + timeout_s
    try:
        process = start(request["command"], request["process"]["cwd"], env, log)
    except OSError as error:
        return f"--before cannot be started: {error.strerror or error}"
    problem = await_end(process, lambda: not is_disturbed(0.05) and time.monotonic() < deadline)
    if problem and time.monotonic() >= deadline:
        problem = f"it did not end within {timeout_s:g} s"
    return problem and f"--before failed: {problem}{_shown(log)}"


def exit_code(folder: str) -> int:
    """Return the exit code of the job on this node, for `--after`.

    Parameters
    ----------
    folder : str
        The job's folder on this node.

    Returns
    -------
    int
        That of the first process that failed, as a shell reports it; 0 if none failed.
    """
    ends = [
        job_files.read_json(os.path.join(folder, name, job_files.EXIT)) or {} for name in job_files.processes(folder)
    ]
    codes = [(end.get("time") or 0.0, end["code"]) for end in ends if end.get("code")]
    code = min(codes)[1] if codes else 0
    return code if code >= 0 else 128 - code


def stop_s(folder: str) -> float:
    """Return how many seconds a stop waits for `--after`; 0 for a job without one.

    Parameters
    ----------
    folder : str
        The job's folder on this node.

    Returns
    -------
    float
    """
    specs = (
        job_files.read_json(os.path.join(folder, name, job_files.SPEC)) or {} for name in job_files.processes(folder)
    )
    return STOPPED_S if any(spec.get("after") for spec in specs) else 0.0


def note(log: str, text: str) -> None:
    """Append a message of torchfab to a log file.

    Parameters
    ----------
    log : str
        The file.
    text : str
        The line.
    """
    try:
        with open(log, "a", encoding="utf-8", opener=_private) as file:
            file.write(f"torchfab: {text}\n")
    except OSError:  # a full disk
        pass


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _shown(log: str) -> str:
    """Return the last lines of a log, each on a line of its own."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 16384))
            lines = [line.rstrip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return "".join(f"\n    {line[:300]}" for line in lines[-_SHOWN_LINES:])

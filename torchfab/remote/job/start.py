"""Phase two on a node: write the specs, start the supervisor of all processes in tmux, then release them together."""

from __future__ import annotations

import os
import sys
import time

from torchfab.remote import job_files, tmux
from torchfab.remote.host.login_environment import is_inherited
from torchfab.remote.job import bytecode_cache, redaction, start_barrier, window_output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# The supervisor starts in 30 ms. If many start on few cores, frequent polling would delay them.
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.01, 0.1
_LATE_S = 2.0  # then check for a full disk, on which a supervisor cannot report that it is ready

_TMUX_FIX = "log in there and check that it works: tmux -L torchfab -f /dev/null new-session"


def start(folder: str, request: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Start the supervisor of this node's processes; it waits at the start barrier.

    Parameters
    ----------
    folder : str
        The job's folder on this node, made in phase one.
    request : dict
        `session`, `mask_key` (key for the digests of secrets, see `redaction`), `grace_s`, `start_timeout_s`,
        `secret_patterns` (names of variables of the node's own environment whose values must not stay in a file) and
        `processes`: dicts with `name`, `argv`, `env`, `secrets` (None: also without the node's own secrets), `cwd`,
        `rank`, `rank_logs`, `folders`, `files`, `path`, `python_path`, `after`, `after_timeout_s`.
    environ : mapping of str to str
        The environment of this node for the job (`Preparation.environ`).

    Returns
    -------
    dict
        `started`: names of the processes whose supervisor is ready; `problems`: one for each of the others.
    """
    values: dict[str, str] = {}
    for each in request["processes"]:
        secrets, env = process_environment(each, environ, request["secret_patterns"])
        process = {**each, "env": env, "secrets": secrets}
        values.update(secrets)
        _write_spec(os.path.join(folder, process["name"]), process, request["grace_s"])
    redaction.write(folder, values, request.get("mask_key", ""))
    bytecode_cache.write(folder)
    names = [process["name"] for process in request["processes"]]
    error = tmux.open_session(request["session"], windows(folder, names), request["start_timeout_s"])
    if error:
        return {"started": [], "problems": [{"what": f"cannot open the tmux session: {error}", "fix": _TMUX_FIX}]}
    return _await_all(folder, job_files.READY, names, request["start_timeout_s"])


def process_environment(
    process: dict[str, Any], environ: Mapping[str, str], secret_patterns: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the environment of a process.

    Parameters
    ----------
    process : dict
        `env`, `secrets`, `path`, as in `start`.
    environ : mapping of str to str
        The environment of this node for the job.
    secret_patterns : list of str
        Names whose values must not stay in a file.

    Returns
    -------
    tuple of dict of str to str
        The secret part, and the rest.
    """
    base = {name: value for name, value in environ.items() if is_inherited(name)}
    secret = {name: value for name, value in base.items() if _matches(name, secret_patterns)}
    public = {name: value for name, value in base.items() if name not in secret}
    secrets = {} if process["secrets"] is None else {**secret, **process["secrets"]}
    return secrets, _environment(process, public)


def release(folder: str, names: list[str], timeout_s: float) -> dict[str, Any]:
    """Release the processes of this node from the start barrier and wait until they have started.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    names : list of str
        Names of the processes.
    timeout_s : float
        Time limit for all of them together, in seconds.

    Returns
    -------
    dict
        `started`: names of the processes that have started; `problems`: one for each of the others.
    """
    start_barrier.release(folder, names)
    return _await_all(folder, job_files.STARTED, names, timeout_s)


def _matches(name: str, patterns: list[str]) -> bool:
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name.upper(), pattern) for pattern in patterns)


def _write_spec(folder: str, process: dict[str, Any], grace_s: float) -> None:
    job_files.make_private(folder)
    for sub in process.get("folders", ()):
        job_files.make_private(os.path.join(folder, sub))
    for path, text in process.get("files", {}).items():
        _write_file(os.path.join(folder, path), text)
    spec = {key: value for key, value in process.items() if key not in ("secrets", "files", "path", "python_path")}
    spec.update(grace_s=grace_s, held_by=start_barrier.server_identity())
    if process["secrets"]:
        job_files.write_json(os.path.join(folder, job_files.SECRETS), process["secrets"])
    job_files.write_json(os.path.join(folder, job_files.SPEC), spec)


def _write_file(path: str, text: str) -> None:
    job_files.make_private(os.path.dirname(path))
    job_files.write_text(path, text)
    if text.startswith("#!"):
        os.chmod(path, 0o700)


def _environment(process: dict[str, Any], base: dict[str, str]) -> dict[str, str]:
    env = {**base, **process["env"]}
    if process.get("path"):
        env["PATH"] = os.pathsep.join([*process["path"], env.get("PATH", os.defpath)])
    if process.get("python_path"):
        own = [env["PYTHONPATH"]] if env.get("PYTHONPATH") else []
        env["PYTHONPATH"] = os.pathsep.join([*process["python_path"], *own])
    return env


def windows(folder: str, names: list[str]) -> list[tuple[str, list[str]]]:
    """Return the windows of a session: the supervisor in the first, a viewer of the logs in each of the others.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    names : list of str
        Names of the processes.

    Returns
    -------
    list of (str, list of str)
        Name and command of each window.
    """
    program = [sys.executable, "-I", "-S", os.path.join(folder, job_files.BUNDLE), "supervise"]
    viewers = [(name, window_output.viewer_argv(os.path.join(folder, name))) for name in names[1:]]
    return [(names[0], [*program, *names]), *((name, argv) for name, argv in viewers if argv)]


def _await_all(folder: str, marker: str, names: list[str], timeout_s: float) -> dict[str, Any]:
    """Wait until every process has written the file `marker`, or an error."""
    deadline = time.monotonic() + timeout_s
    late = time.monotonic() + _LATE_S
    waiting, done = list(names), []
    errors: dict[str, str] = {}
    pause_s = _FIRST_PAUSE_S
    while waiting and time.monotonic() < deadline:
        time.sleep(pause_s)
        pause_s = min(_MAX_PAUSE_S, 1.5 * pause_s)
        done += [name for name in waiting if os.path.exists(os.path.join(folder, name, marker))]
        errors.update((name, error) for name in waiting if (error := _error(folder, name)))
        waiting = [name for name in waiting if name not in done and name not in errors]
        if waiting and time.monotonic() > late:
            late += _LATE_S
            if error := _write_error(folder):
                errors.update((name, error) for name in waiting)
                waiting = []
    errors.update((name, f"did not start within {timeout_s:g} s") for name in waiting)
    problems = [{"what": f"{name}: {error}", "fix": ""} for name, error in errors.items()]
    return {"started": [name for name in done if name not in errors], "problems": problems}


def _error(folder: str, name: str) -> str:
    path = os.path.join(folder, name, job_files.EXIT)
    return str((job_files.read_json(path) or {}).get("error") or "") if os.path.exists(path) else ""


def _write_error(folder: str) -> str:
    """Return why files cannot be written into a folder; empty if they can."""
    path = os.path.join(folder, f".write-{os.getpid()}")
    try:
        job_files.write_text(path, " " * 4096)
        os.unlink(path)
    except OSError as error:
        return f"cannot write {folder}: {error.strerror or error}"
    return ""

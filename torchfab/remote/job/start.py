"""Phase two on a node: write the specs and hand every process to a supervisor in tmux; then let all of them begin."""

from __future__ import annotations

import os
import sys
import time

from torchfab.remote import files, tmux
from torchfab.remote.job import bytecode_cache, redaction, start_barrier

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What a process inherits of the node's own environment, besides what the plan gives it.
_LOCAL_TO_TMUX = ("TMUX", "TMUX_PANE", "TERM", "SSH_CLIENT", "SSH_CONNECTION", "SSH_TTY", "PWD", "OLDPWD", "SHLVL", "_")

# A supervisor starts in 30 ms; where many start on few cores, looking often would delay them.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.1

_SEE_TMUX = "log in there and see whether it works: tmux -L torchfab new-session"


def start(folder: str, request: dict[str, Any]) -> dict[str, Any]:
    """Bring up the supervisors of this node's processes; return whose are up and, as problems, whose are not.

    Parameters
    ----------
    folder : str
        The job's folder on this node, made in phase one.
    request : dict
        `session`, `mask_key` (for the digests of secrets, see `masks`), `grace_s`, `start_timeout_s`,
        `secret_patterns` (names of variables of the node's own environment
        whose values must not stay in a file) and `processes`: dicts with `name`, `argv`, `env`, `secrets` (None: not
        those of the node's own environment either), `cwd`, `rank`, `rank_logs`, `folders`, `files`, `path`.
    """
    base = {name: value for name, value in os.environ.items() if name not in _LOCAL_TO_TMUX}
    hidden = {name: value for name, value in base.items() if _matches(name, request["secret_patterns"])}
    shown = {name: value for name, value in base.items() if name not in hidden}
    values: dict[str, str] = {}
    for each in request["processes"]:
        secrets = {} if each["secrets"] is None else {**hidden, **each["secrets"]}
        process = {**each, "env": _environment(each, shown), "secrets": secrets}
        values.update(secrets)
        _write_spec(os.path.join(folder, process["name"]), process, request["grace_s"])
    redaction.write(folder, values, request.get("mask_key", ""))
    bytecode_cache.write(folder)
    windows = _windows(folder, request["processes"])
    error = tmux.open_session(request["session"], windows, request["start_timeout_s"])
    if error:
        return {"started": [], "problems": [{"what": f"cannot open the tmux session: {error}", "fix": _SEE_TMUX}]}
    return _await_all(
        folder, files.READY, [process["name"] for process in request["processes"]], request["start_timeout_s"]
    )


def release(folder: str, names: list[str], timeout_s: float) -> dict[str, Any]:
    """Let the processes of this node begin; return the names of those that did and, as problems, the others."""
    start_barrier.release(folder, names)
    return _await_all(folder, files.STARTED, names, timeout_s)


def _matches(name: str, patterns: list[str]) -> bool:
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name.upper(), pattern) for pattern in patterns)


def _write_spec(folder: str, process: dict[str, Any], grace_s: float) -> None:
    files.make_private(folder)
    for sub in process.get("folders", ()):
        files.make_private(os.path.join(folder, sub))
    for path, text in process.get("files", {}).items():
        _write_file(os.path.join(folder, path), text)
    spec = {key: value for key, value in process.items() if key not in ("secrets", "files", "path")}
    spec.update(grace_s=grace_s, held_by=start_barrier.holder())
    if process["secrets"]:
        files.write_json(os.path.join(folder, files.SECRETS), process["secrets"])
    files.write_json(os.path.join(folder, files.SPEC), spec)


def _write_file(path: str, text: str) -> None:
    files.make_private(os.path.dirname(path))
    files.write_text(path, text)
    if text.startswith("#!"):
        os.chmod(path, 0o700)


def _environment(process: dict[str, Any], base: dict[str, str]) -> dict[str, str]:
    env = {**base, **process["env"]}
    if process.get("path"):
        env["PATH"] = os.pathsep.join([*process["path"], env.get("PATH", os.defpath)])
    return env


def _windows(folder: str, processes: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    program = [sys.executable, "-I", "-S", os.path.join(folder, files.BUNDLE), "supervise"]
    return [(process["name"], [*program, process["name"]]) for process in processes]


def _await_all(folder: str, sign: str, names: list[str], timeout_s: float) -> dict[str, Any]:
    """Wait until the file `sign` is there of every process, or what says why it never will be."""
    deadline = time.monotonic() + timeout_s
    waiting, there = list(names), []
    errors: dict[str, str] = {}
    pause_s = _FIRST_PAUSE_S
    while waiting and time.monotonic() < deadline:
        time.sleep(pause_s)
        pause_s = min(_LONGEST_PAUSE_S, 1.5 * pause_s)
        there += [name for name in waiting if os.path.exists(os.path.join(folder, name, sign))]
        errors.update((name, error) for name in waiting if (error := _error(folder, name)))
        waiting = [name for name in waiting if name not in there and name not in errors]
    errors.update((name, f"did not start within {timeout_s:g} s") for name in waiting)
    problems = [{"what": f"{name}: {error}", "fix": ""} for name, error in errors.items()]
    return {"started": [name for name in there if name not in errors], "problems": problems}


def _error(folder: str, name: str) -> str:
    path = os.path.join(folder, name, files.EXIT)
    return str((files.read_json(path) or {}).get("error") or "") if os.path.exists(path) else ""

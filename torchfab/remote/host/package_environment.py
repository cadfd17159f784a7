"""Create a virtual environment from a list of packages, and record the list: `torchfab env push` on a node."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import time

from torchfab.remote import job_files
from torchfab.remote.host import environment_marker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_REQUIREMENTS = "torchfab-requirements.txt"
_UV_FOLDERS = ("~/.local/bin", "~/.cargo/bin")
_SHOWN_LINES = 8
_SPECIFIER = re.compile(r"(>=|<=|==|!=|~=|>|<)\s*(\d+(?:\.\d+)*)(\.\*)?")
_NUMBER = re.compile(r"\d+")


class PushError(Exception):
    """The environment could not be created.

    Parameters
    ----------
    what, fix : str
        The problem, and how to fix it.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


def push(request: dict[str, Any]) -> dict[str, Any]:
    """Create the environment, unless it exists already.

    Parameters
    ----------
    request : dict
        `folder` (absolute path of the environment), `workdir`, `python` (that creates the environment, or a version for
        uv), `requirements` (text), `digest` and `source` (of the requirements file), `timeout_s`, and `requires`
        (versions of Python; empty: any).

    Returns
    -------
    dict
        `made` (whether it had to be created), `tool` (`uv` or `pip`), `python` (version), `seconds`; or `problems`.
    """
    begun = time.monotonic()
    deadline = begun + request["timeout_s"]
    try:
        _require_workdir(request["workdir"])
        with _lock(request, deadline):
            before = _check(request["folder"])
            if before is not None and before["digest"] == request["digest"]:
                known = {name: str(before.get(name, "")) for name in ("tool", "python")}
                return {"made": False, **known, "seconds": 0.0}
            tool, version = _make_or_remove(request, deadline)
    except PushError as error:
        return {"problems": [{"what": error.what, "fix": error.fix}]}
    return {"made": True, "tool": tool, "python": version, "seconds": time.monotonic() - begun}


def find_uv() -> str | None:
    """Return the path of uv on PATH, or in its installer's default folder; None if there is none."""
    folders = [os.environ.get("PATH", os.defpath), *map(os.path.expanduser, _UV_FOLDERS)]
    return shutil.which("uv", path=os.pathsep.join(folders))


def _require_workdir(workdir: str) -> None:
    if not os.path.isdir(workdir):
        raise PushError(f"the working directory {workdir} does not exist", "copy your code there: fab sync")


@contextlib.contextmanager
def _lock(request: dict[str, Any], deadline: float) -> Iterator[None]:
    """Wait while another node creates the same folder on a shared file system."""
    path = request["folder"].rstrip("/") + ".torchfab-lock"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = open(path, "w")  # closed below; the file remains, because removing it would allow two locks
    except OSError as error:
        raise PushError(f"cannot write {path}: {error.strerror}", "allow writing, or give another --path") from None
    with file:
        while not _is_locked(file.fileno()):
            if time.monotonic() > deadline:
                what = f"another env push is running in {request['folder']}"
                raise PushError(what, "wait for it, or raise --timeout")
            time.sleep(0.2)
        yield


def _is_locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _check(folder: str) -> dict[str, Any] | None:
    """Return the marker of the existing environment, if it works."""
    python = os.path.join(folder, "bin", "python")
    found = environment_marker.read_marker(python)
    is_ours = os.path.exists(os.path.join(folder, _REQUIREMENTS))  # left by an interrupted push
    if found is None and not is_ours and os.path.isdir(folder) and os.listdir(folder):
        raise PushError(
            f"{folder} is not empty, and was not created by env push", "remove it there, or give another --path"
        )
    return found if os.access(python, os.X_OK) else None


def _make_or_remove(request: dict[str, Any], deadline: float) -> tuple[str, str]:
    """Create the environment anew; after a failure, remove it."""
    try:
        return _make(request, deadline)
    except PushError:
        shutil.rmtree(request["folder"], ignore_errors=True)
        raise


def _make(request: dict[str, Any], deadline: float) -> tuple[str, str]:
    """Create the environment anew; return the tool and the version of Python."""
    folder, uv = request["folder"], find_uv()
    python = os.path.join(folder, "bin", "python")
    marker = os.path.join(folder, environment_marker.NAME)
    _remove(folder, marker)
    new = [uv, "venv", "--python", request["python"]] if uv else [request["python"], "-m", "venv"]
    _run([*new, folder], request, deadline)
    ask = [python, "-c", "import platform; print(platform.python_version())"]
    if request["requires"]:
        _check_version(_run(ask, request, deadline).strip(), request["requires"])
    listed = os.path.join(folder, _REQUIREMENTS)
    job_files.write_text(listed, request["requirements"])
    flags = ["--disable-pip-version-check", "--no-input"]
    install = [uv, "pip", "sync", "--python", python] if uv else [python, "-m", "pip", "install", *flags, "-r"]
    _run([*install, listed], request, deadline)
    version = _run(ask, request, deadline).strip()
    tool = "uv" if uv else "pip"
    kept = {"digest": request["digest"], "source": request["source"], "tool": tool, "python": version}
    job_files.write_json(marker, {**kept, "time": time.time()})
    return tool, version


def _check_version(version: str, requires: str) -> None:
    """Raise PushError if a version of Python is not one that the project needs."""
    if not all(_satisfies(version, *match) for match in _SPECIFIER.findall(requires)):
        raise PushError(
            f"the project needs Python {requires}, and the environment would have {version}",
            "name another interpreter of that node: --python python3.12, or a path",
        )


def _satisfies(version: str, sign: str, wanted: str, star: str) -> bool:
    """Return whether a version satisfies a specifier of PEP 440, such as `>=3.11`, `==3.11.*` or `~=3.10`."""
    want = [int(part) for part in wanted.split(".") if part.isdigit()]
    have = [int(part) for part in _NUMBER.findall(version)[:3]]
    have, want = have + [0] * (len(want) - len(have)), want if star else want + [0] * (len(have) - len(want))
    if sign in ("==", "!="):
        return (have[: len(want)] == want) == (sign == "==")
    if sign == "~=":
        prefix = wanted.split(".")[:-1]
        return have >= want and version.split(".")[: len(prefix)] == prefix
    return {">=": have >= want, "<=": have <= want, ">": have > want, "<": have < want}[sign]


def _remove(folder: str, marker: str) -> None:
    """Remove an environment, its marker first, so that an incompletely removed one does not count as finished."""
    try:
        if os.path.exists(marker):
            os.unlink(marker)
        if os.path.isdir(folder):
            shutil.rmtree(folder)
    except OSError as error:
        fix = "end the processes that use it, or give another --path"
        raise PushError(f"{folder} cannot be removed: {error}", fix) from None


def _run(argv: list[str], request: dict[str, Any], deadline: float) -> str:
    """Run a command in the working directory, to which paths in the list are relative; return its output."""
    shown = " ".join(os.path.basename(word) if index == 0 else word for index, word in enumerate(argv[:4]))
    try:
        done = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=request["workdir"],
            timeout=max(0.1, deadline - time.monotonic()),
        )
    except FileNotFoundError:
        raise PushError(f"there is no {argv[0]}", "name an interpreter that the nodes have with --python") from None
    except subprocess.TimeoutExpired:
        fix = "raise --timeout; check that the node can reach the package index"
        raise PushError(f"{shown} … did not end within {request['timeout_s']:g} s", fix) from None
    except OSError as error:
        raise PushError(f"{argv[0]} does not run: {error.strerror}", "name another one with --python") from None
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()][-_SHOWN_LINES:]
        text = "".join(f"\n    {line[:300]}" for line in lines)
        raise PushError(f"{shown} … ended with status {done.returncode}{text}", "see its output above")
    return done.stdout

"""The programs that a launcher needs on a node: where they are, which version they are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TIMEOUT_S = 10
_VERSION = re.compile(r"\d+(?:\.\d+)+[\w.+-]*")


def check(wanted: list[dict[str, Any]], python: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Return the versions of the programs that are there, by name, and a problem for each that is not.

    Parameters
    ----------
    wanted : list of dict
        `names` (alternatives), `install` (the command that installs it), `version_flag`.
    python : str
        The training interpreter: programs beside it are found before those on PATH.
    """
    versions: dict[str, str] = {}
    problems = []
    for program in wanted:
        found = {name: path for name in program["names"] if (path := find(name, python))}
        versions.update({name: version(path, program["version_flag"]) for name, path in found.items()})
        if not found:
            names = " or ".join(program["names"])
            problems.append({"what": f"there is no {names} on PATH", "fix": f"install it there: {program['install']}"})
    return versions, problems


def find(name: str, python: str) -> str | None:
    """Return the path of a program; None when there is none."""
    beside = os.path.dirname(python)
    return shutil.which(name, path=os.pathsep.join([*([beside] if beside else []), os.environ.get("PATH", os.defpath)]))


def version(path: str, flag: str) -> str:
    """Return the version that a program tells; empty when it does not."""
    try:
        done = subprocess.run(
            [path, flag],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = _VERSION.search(done.stdout + done.stderr)
    return match[0] if match else ""

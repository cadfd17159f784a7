"""The programs that a launcher needs on a node: their paths and versions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_TIMEOUT_S = 10
_VERSION = re.compile(r"\d+(?:\.\d+)+[\w.+-]*")


def check(
    requirements: list[dict[str, Any]], python: str, environ: Mapping[str, str]
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Check that the required programs are installed.

    Parameters
    ----------
    requirements : list of dict
        `names` (alternatives), `install` (the command that installs it), `version_flag`.
    python : str
        The training interpreter: programs beside it take precedence over those on PATH.
    environ : mapping of str to str
        The environment with PATH.

    Returns
    -------
    dict of str to str
        Versions of the programs that were found, by name.
    list of dict
        `what` and `fix` for each program that is missing.
    """
    versions: dict[str, str] = {}
    problems = []
    for program in requirements:
        found = {name: path for name in program["names"] if (path := find(name, python, environ))}
        versions.update({name: version(path, program["version_flag"], environ) for name, path in found.items()})
        if not found:
            names = " or ".join(program["names"])
            problems.append({"what": f"there is no {names} on PATH", "fix": f"install it there: {program['install']}"})
    return versions, problems


def find(name: str, python: str, environ: Mapping[str, str]) -> str | None:
    """Find a program beside the interpreter or on PATH.

    Parameters
    ----------
    name : str
        Its name.
    python : str
        The training interpreter.
    environ : mapping of str to str
        The environment with PATH.

    Returns
    -------
    str or None
        Its path; None if it is not installed.
    """
    beside = os.path.dirname(python)
    return shutil.which(name, path=os.pathsep.join([*([beside] if beside else []), environ.get("PATH", os.defpath)]))


def version(path: str, flag: str, environ: Mapping[str, str]) -> str:
    """Return the version that a program prints.

    Parameters
    ----------
    path : str
        The program.
    flag : str
        The option that makes it print its version.
    environ : mapping of str to str
        The environment to run it in.

    Returns
    -------
    str
        Empty if it prints none within 10 s.
    """
    try:
        done = subprocess.run(
            [path, flag],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            env=environ,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = _VERSION.search(done.stdout + done.stderr)
    return match[0] if match else ""

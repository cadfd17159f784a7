"""Optional packages that some commands need: the error and the install command if one is missing."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import torchfab
from torchfab.core.errors import TorchfabError


def missing(package: str, extra: str, command: str) -> TorchfabError:
    """Return the error for a missing package that a command needs.

    Parameters
    ----------
    package : str
        The package.
    extra : str
        The extra of torchfab that contains it.
    command : str
        The command that needs it.

    Returns
    -------
    TorchfabError
        Its fix is the install command for this installation of torchfab.
    """
    return TorchfabError(
        f"{command} needs the package {package} (torchfab[{extra}]) on this machine; {sys.executable} does not have it",
        install_line(requirement(package, extra)),
    )


def requirement(package: str, extra: str) -> str:
    """Return a package with its version range, from torchfab's metadata or the clone's pyproject.toml.

    Parameters
    ----------
    package : str
        The package.
    extra : str
        The extra of torchfab that contains it.

    Returns
    -------
    str
        `kubernetes>=31`; only the name if no version range is found.
    """
    try:
        lines = importlib.metadata.requires("torchfab") or []
    except importlib.metadata.PackageNotFoundError:
        lines = _pinned_by_clone()
    for line in lines:
        spec, _, marker = line.partition(";")
        if re.match(rf"{re.escape(package)}(?![\w-])", spec) and (not marker or extra in marker):
            return spec.strip()
    return package


def _pinned_by_clone() -> list[str]:
    clone = Path(torchfab.__file__).parents[1]
    files = [clone / name for name in ("requirements.txt", "requirements-dev.txt")]
    return [line for path in files if path.is_file() for line in path.read_text(encoding="utf-8").splitlines()]


def install_line(spec: str) -> str:
    """Return the command that installs a package into the environment that runs this program.

    Parameters
    ----------
    spec : str
        The package with its versions.

    Returns
    -------
    str
        That of pipx or uv if it created the environment, else that of pip.
    """
    if os.path.isfile(os.path.join(sys.prefix, "pipx_metadata.json")):
        return shlex.join(["pipx", "inject", "torchfab", spec])
    if not find_spec("pip"):  # uv creates environments without pip
        return shlex.join(["uv", "pip", "install", "--python", sys.executable, spec])
    return shlex.join([sys.executable, "-m", "pip", "install", spec])

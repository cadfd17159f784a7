"""Packages that only some commands need: what to type where one of them is not installed."""

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
    """Return the error for a package that a command needs and that is not installed beside torchfab.

    Parameters
    ----------
    package : str
        The package.
    extra : str
        The extra of torchfab that has it.
    command : str
        What needs it.

    Returns
    -------
    TorchfabError
        Its fix is the line to type, for the way in which torchfab is installed.
    """
    return TorchfabError(
        f"{command} needs the package {package} (torchfab[{extra}]) on this machine, and {sys.executable} has none",
        install_line(requirement(package, extra)),
    )


def requirement(package: str, extra: str) -> str:
    """Return a package with its versions, as the installed torchfab or the clone's pyproject.toml names it.

    Parameters
    ----------
    package : str
        The package.
    extra : str
        The extra of torchfab that has it.

    Returns
    -------
    str
        `kubernetes>=31`; the name alone where nothing names its versions.
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
    path = Path(torchfab.__file__).parents[1] / "requirements.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def install_line(spec: str) -> str:
    """Return the command that installs a package into the environment that runs this program.

    Parameters
    ----------
    spec : str
        The package with its versions.

    Returns
    -------
    str
        Of pipx or uv where that made the environment, else of pip.
    """
    if os.path.isfile(os.path.join(sys.prefix, "pipx_metadata.json")):
        return shlex.join(["pipx", "inject", "torchfab", spec])
    if not find_spec("pip"):  # uv makes environments without it
        return shlex.join(["uv", "pip", "install", "--python", sys.executable, spec])
    return shlex.join([sys.executable, "-m", "pip", "install", spec])

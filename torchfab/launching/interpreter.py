"""Choose the interpreter of the training if no flag names one.

Torchfab may be installed in its own environment (uv tool, pipx), separate from that of the training.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torchfab


def default_python(environ: Mapping[str, str], project: Path) -> str:
    """Return the interpreter of the training: in the clone the one that runs `fab`, otherwise the first that exists.

    These are tried, in this order: the activated virtual or conda environment; the environment that torchfab is
    installed in, if it has torch; `.venv` of the project; python3 on PATH.

    Parameters
    ----------
    environ : mapping of str to str
        The environment of the command.
    project : Path
        The folder of the project.

    Returns
    -------
    str
        Its absolute path; the same path is used on every node.
    """
    if (Path(torchfab.__file__).parents[1] / "run").is_file():
        return sys.executable
    return next(_candidates(environ, project), sys.executable)


def _candidates(environ: Mapping[str, str], project: Path) -> Iterator[str]:
    conda = environ.get("CONDA_PREFIX", "") if environ.get("CONDA_DEFAULT_ENV") != "base" else ""
    yield from _in_environments(environ.get("VIRTUAL_ENV", ""), conda)
    if importlib.util.find_spec("torch"):
        yield sys.executable
    yield from _in_environments(str(project / ".venv"))
    path = os.pathsep.join(folder for folder in environ.get("PATH", "").split(os.pathsep) if not _is_own(folder))
    found = shutil.which("python3", path=path) or shutil.which("python", path=path)
    if found:
        yield os.path.abspath(found)


def _in_environments(*folders: str) -> Iterator[str]:
    for folder in folders:
        python = os.path.join(folder, "bin", "python")
        if os.path.isabs(folder) and os.access(python, os.X_OK):
            yield python


def _is_own(folder: str) -> bool:
    return os.path.realpath(folder) == os.path.realpath(os.path.join(sys.prefix, "bin"))

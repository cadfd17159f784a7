"""The project that a command belongs to: the nearest folder upwards that has settings of torchfab."""

from __future__ import annotations

import re
from pathlib import Path

SETTINGS_FILE = "torchfab.yaml"
FABRIC_FILES = ("fabric.yaml", "fabric.yml", "fabric.json")
_SECTION = re.compile(r"""^[ \t{]*["']?torchfab["']?[ \t]*:""", re.MULTILINE)


def find(start: Path) -> Path | None:
    """Find the project of a folder, as git does: the folder itself, or the nearest one above it.

    Parameters
    ----------
    start : Path
        The folder to start from.

    Returns
    -------
    Path or None
        The nearest folder with a torchfab.yaml, or with a section `torchfab` in a fabric.yaml. None if there is none.
    """
    start = start.absolute()
    return next((folder for folder in (start, *start.parents) if _is_project(folder)), None)


def _is_project(folder: Path) -> bool:
    if (folder / SETTINGS_FILE).is_file():
        return True
    return any(_has_section(folder / name) for name in FABRIC_FILES)


def _has_section(path: Path) -> bool:
    try:
        return bool(_SECTION.search(path.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return False

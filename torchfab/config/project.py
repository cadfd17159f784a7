"""Find the project of a command: the nearest parent folder with settings of torchfab."""

from __future__ import annotations

import os
import re
import stat
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
        Files of other users in world-writable folders, such as /tmp, are ignored.
    """
    start = start.absolute()
    return next((folder for folder in (start, *start.parents) if _is_project(folder)), None)


def _is_project(folder: Path) -> bool:
    own = folder / SETTINGS_FILE
    return (own.is_file() and not _may_be_planted(own)) or any(_has_section(folder / name) for name in FABRIC_FILES)


def _may_be_planted(path: Path) -> bool:
    """Return whether any user can have created a file, as in /tmp: settings name programs that run as the caller."""
    try:
        owner, folder = path.stat().st_uid, path.parent.stat()
    except OSError:
        return True
    return owner not in (0, os.geteuid()) and bool(folder.st_mode & stat.S_IWOTH)


def _has_section(path: Path) -> bool:
    if not path.is_file() or _may_be_planted(path):
        return False
    try:
        return bool(_SECTION.search(path.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return False

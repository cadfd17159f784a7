"""One digest of the code in a node's working directory: nodes with equal digests run the same code."""

from __future__ import annotations

import hashlib
import os
import subprocess

from torchfab.remote.host import workdir_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST_FILES = 5000
WITHIN_S = 10.0
_GIT_TIMEOUT_S = 10
# Fallback when no list of files is given and git does not provide one: sources and settings, without output folders.
_SUFFIXES = (".py", ".sh", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".json", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h")
_LEFT_OUT = {"__pycache__", "node_modules", "venv", "site-packages", "jobs", "runs", "wandb", "outputs", "checkpoints"}


def digest_workdir(workdir: str, names: list[str] | None) -> dict[str, Any]:
    """Compute one digest of the code in a working directory.

    Parameters
    ----------
    workdir : str
        The working directory.
    names : list of str, optional
        The files to hash, relative to the workdir. Default: the files that git tracks there; without git, every file
        with the suffix of a source or a setting.

    Returns
    -------
    dict
        `by` (how the files were found: list, git or walk), `files` (how many), `digest` of all of them, `whole`
        (whether all were hashed in time). Empty if the directory does not exist.
    """
    if not os.path.isdir(workdir):
        return {}
    by = "list" if names is not None else "git"
    if names is None:
        names = tracked(workdir)
    if names is None:
        by, names = "walk", _sources(workdir)
    found, whole = _digests(workdir, names)
    lines = "\n".join(f"{name}\0{each}" for name, each in sorted(found.items()) if each)
    digest = hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
    return {"by": by, "files": sum(map(bool, found.values())), "digest": digest[:16], "whole": whole}


def file_digests(workdir: str, names: list[str] | None) -> dict[str, str]:
    """Compute the digest of each file.

    Parameters
    ----------
    workdir : str
        The working directory.
    names : list of str, optional
        As in `digest_workdir`.

    Returns
    -------
    dict of str to str
        Digest by name; empty for a missing file.
    """
    if names is None:
        names = tracked(workdir)
    return _digests(workdir, _sources(workdir) if names is None else names)[0]


def tracked(workdir: str) -> list[str] | None:
    """List the files that git tracks in a folder.

    Parameters
    ----------
    workdir : str
        The folder.

    Returns
    -------
    list of str or None
        At most MOST_FILES names; None if the folder is not a work tree or git is not installed.
    """
    # The folder may belong to another user, and its git configuration may name a program: only read the index.
    safe = ("-c", "safe.directory=*", "-c", "core.fsmonitor=false")
    try:
        done = subprocess.run(
            ["git", *safe, "-C", workdir, "ls-files", "-z"],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    return names[:MOST_FILES] if done.returncode == 0 and names else None


def _sources(workdir: str) -> list[str]:
    found: list[str] = []
    for folder, folders, names in os.walk(workdir):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT and not name.startswith("."))
        paths = (os.path.join(folder, name) for name in sorted(names) if name.endswith(_SUFFIXES))
        found += [os.path.relpath(path, workdir) for path in paths]
        if len(found) > MOST_FILES:
            break
    return found[:MOST_FILES]


def _digests(workdir: str, names: list[str]) -> tuple[dict[str, str], bool]:
    """Return the digest of each file, and whether all were hashed within WITHIN_S."""
    found = workdir_files.digests(workdir, names, WITHIN_S)
    return found, len(found) == len(names)

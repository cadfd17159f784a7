"""The code in the working directory of a node, as one digest: nodes with the same digest run the same."""

from __future__ import annotations

import hashlib
import os
import subprocess

from torchfab.remote.host import file_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST_FILES = 5000
WITHIN_S = 10.0
_GIT_TIMEOUT_S = 10
# Where no list of files is given and no git tells it: sources and settings, and no folder of products.
_SUFFIXES = (".py", ".sh", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".json", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h")
_LEFT_OUT = {"__pycache__", "node_modules", "venv", "site-packages", "jobs", "runs", "wandb", "outputs", "checkpoints"}


def look(workdir: str, names: list[str] | None) -> dict[str, Any]:
    """Return `by` (how the files were found: list, git or walk), `files` (how many), `digest` of all, `whole`.

    Parameters
    ----------
    names : list of str, optional
        The files to look at, relative to the workdir. Default: those that git tracks there, or else all that look like
        sources or settings.
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


def files(workdir: str, names: list[str] | None) -> dict[str, str]:
    """Return the digest of each of these files; empty for one that is not there."""
    if names is None:
        names = tracked(workdir)
    return _digests(workdir, _sources(workdir) if names is None else names)[0]


def tracked(workdir: str) -> list[str] | None:
    """Return the files that git tracks in a folder, or None where it is no work tree, or there is no git."""
    # The folder may be another user's, and a setting in it may name a program: we only read the index.
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
    """Return each file's digest, and whether there was time for all of them."""
    found = file_tree.digests(workdir, names, WITHIN_S)
    return found, len(found) == len(names)

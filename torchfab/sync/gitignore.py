"""What git holds though rsync's reading of .gitignore leaves it out: rsync knows no exception (`!`), nor the index.

git is asked, where the directory is a work tree and git is there; what it names beyond rsync's own list becomes rules
that stand before those of the .gitignore files. Everything else stays as rsync has it: what is ignored on a node, such
as a checkpoint written there, is never removed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from torchfab.sync.rsync import is_left_out

_WILD = frozenset("*?[")
_GIT = ("git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false")


def in_git(source: str, timeout_s: float) -> list[str]:
    """Return the files and links of a directory that git tracks or would add; none where no git knows.

    Parameters
    ----------
    timeout_s : float
        How long git may take.
    """
    argv = [*_GIT, "-C", source, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired):
        return []
    names = [os.fsdecode(name) for name in done.stdout.split(b"\0") if name] if done.returncode == 0 else []
    return [name for name in dict.fromkeys(names) if _is_file(os.path.join(source, name))]


def _is_file(path: str) -> bool:
    return os.path.islink(path) or os.path.isfile(path)


def rules(known: Iterable[str], listed: Collection[str]) -> tuple[str, ...]:
    """Return the filters that add to rsync's list what git knows beyond it; pure.

    Parameters
    ----------
    known : iterable of str
        What git holds, relative to the directory.
    listed : collection of str
        What rsync would copy without these filters.
    """
    mine = set(listed)
    missing = sorted(name for name in known if name not in mine and not is_left_out(name))
    open_already = {folder for name in listed for folder in _folders(name)}
    opened = sorted({folder for name in missing for folder in _folders(name)} - open_already)
    return (
        *(f"--filter=+ /{_pattern(name)}" for name in missing),
        *(f"--filter=+ /{_pattern(folder)}/" for folder in opened),
        # Of a folder that is opened for an exception, the rest stays out.
        *(f"--filter=- /{_pattern(folder, wild=True)}/*" for folder in opened),
    )


def _folders(name: str) -> list[str]:
    return [str(parent) for parent in PurePosixPath(name).parents][:-1]


def _pattern(name: str, wild: bool = False) -> str:
    """Return a name as a pattern of rsync, in which a backslash escapes only where there is a wildcard (rsync(1))."""
    if not wild and not _WILD & set(name):
        return name
    return "".join(f"\\{each}" if each in _WILD or each == "\\" else each for each in name)

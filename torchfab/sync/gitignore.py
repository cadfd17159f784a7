"""Find files that git includes but rsync would exclude.

rsync reads .gitignore files but supports neither exceptions (`!`) nor git's index. If the directory is a git work tree
and git is installed, the files that git lists and rsync does not become filter rules that precede those of the
.gitignore files. All other rules stay: files that are ignored on a node, such as a checkpoint written there, are never
removed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from torchfab.sync.rsync import is_excluded

_WILD = frozenset("*?[")
_GIT = ("git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false")


def list_git_files(source: str, timeout_s: float) -> list[str]:
    """Return the files and links of a directory that git tracks or would add.

    Parameters
    ----------
    source : str
        Absolute path of the directory.
    timeout_s : float
        Time limit of git, in seconds.

    Returns
    -------
    list of str
        Relative to the directory; empty if git is missing, fails or does not know the directory.
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


def include_rules(git_files: Iterable[str], listed: Collection[str]) -> tuple[str, ...]:
    """Return the rsync filters that include the files that git lists but rsync does not. Pure.

    Parameters
    ----------
    git_files : iterable of str
        Files that git tracks or would add, relative to the directory.
    listed : collection of str
        Files that rsync would copy without these filters.

    Returns
    -------
    tuple of str
        Options of rsync, in order.
    """
    copied = set(listed)
    missing = sorted(name for name in git_files if name not in copied and not is_excluded(name))
    included = {folder for name in listed for folder in _folders(name)}
    reopened = sorted({folder for name in missing for folder in _folders(name)} - included)
    return (
        *(f"--filter=+ /{_pattern(name)}" for name in missing),
        *(f"--filter=+ /{_pattern(folder)}/" for folder in reopened),
        # Exclude the other files of a folder that is included for the sake of one file.
        *(f"--filter=- /{_pattern(folder, wild=True)}/*" for folder in reopened),
    )


def exclude_rule(source: str, folder: str) -> tuple[str, ...]:
    """Return the rsync filter that excludes a folder. Pure.

    Parameters
    ----------
    source : str
        The directory that is copied; an absolute path.
    folder : str
        The folder; an absolute path.

    Returns
    -------
    tuple of str
        One option of rsync; empty where the folder is not inside the directory.
    """
    path, base = PurePosixPath(folder), PurePosixPath(source)
    if path == base or not path.is_relative_to(base):
        return ()
    return (f"--filter=- /{_pattern(str(path.relative_to(base)))}",)


def _folders(name: str) -> list[str]:
    return [str(parent) for parent in PurePosixPath(name).parents][:-1]


def _pattern(name: str, wild: bool = False) -> str:
    """Return a name as an rsync pattern. A backslash is an escape only if the pattern has a wildcard (rsync(1))."""
    if not wild and not _WILD & set(name):
        return name
    return "".join(f"\\{each}" if each in _WILD or each == "\\" else each for each in name)

"""Find files of this node by paths and glob patterns, for a copy to the launch machine."""

from __future__ import annotations

import glob
import os
import shutil
import time

from torchfab.remote.host import workdir_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST_FILES = 200_000  # files of one host, whose names are sent in one answer


def find(request: dict[str, Any]) -> dict[str, Any]:
    """List the files that paths and patterns match.

    Parameters
    ----------
    request : dict
        `workdir`, the absolute path that relative ones are relative to; `patterns`, paths and glob patterns.

    Returns
    -------
    dict
        `matches`: the files by pattern, each with `pattern` (its index), `base` (the folder that its names are relative
        to: the workdir, or `/`), `name` (the match), `files` (names and sizes) and `links` (names and targets);
        `unreadable`: paths of folders and files that this user may not read. Or `problems`.
    """
    if shutil.which("rsync") is None:
        return {"problems": [{"what": "rsync is not installed there", "fix": workdir_files.INSTALL}]}
    workdir = os.path.normpath(request["workdir"])
    found: list[dict[str, Any]] = []
    unreadable: list[str] = []
    count = 0
    for index, pattern in enumerate(request["patterns"]):
        for path in expand(workdir, pattern):
            base, name = split(workdir, path)
            listing = Listing(base, name)
            count += len(listing.files)
            unreadable += listing.unreadable
            entry = {"files": list(map(list, listing.files.items())), "links": list(map(list, listing.links.items()))}
            found.append({"pattern": index, "base": base, "name": name, **entry})
            if count > MOST_FILES:
                what = f"{pattern} matches more than {MOST_FILES} files there"
                return {"problems": [{"what": what, "fix": "name a smaller folder, or pack it into one file there"}]}
    return {"matches": found, "unreadable": unreadable[:20]}


def expand(workdir: str, pattern: str) -> list[str]:
    """Return the paths that a pattern matches.

    Parameters
    ----------
    workdir : str
        The folder that a relative pattern is relative to.
    pattern : str
        A path, which may begin with `~` and contain `*`, `?`, `[…]` and `**`. A file of exactly this name comes first.

    Returns
    -------
    list of str
        Absolute paths, sorted.
    """
    path = os.path.join(workdir, os.path.expanduser(pattern))
    if os.path.lexists(path):
        return [os.path.normpath(path)]
    whole = os.path.expanduser(pattern) if os.path.isabs(os.path.expanduser(pattern)) else ""
    whole = whole or os.path.join(glob.escape(workdir), pattern)
    return sorted({os.path.normpath(each) for each in glob.glob(whole, recursive=True)})


def split(workdir: str, path: str) -> tuple[str, str]:
    """Split a path into the folder that it is relative to, the workdir or `/`, and the rest.

    Parameters
    ----------
    workdir, path : str
        Absolute, normalized paths.

    Returns
    -------
    tuple of str
        `("/work", "logs/a.txt")`, `("/", "data/x")`; the rest is `.` for the workdir itself.
    """
    if path == workdir:
        return workdir, "."
    if path.startswith(workdir.rstrip("/") + "/"):
        return workdir, os.path.relpath(path, workdir)
    return "/", path.lstrip("/")


class Listing:
    """The files below a path.

    A symbolic link to another file below the path remains a link; all other links are followed.

    Parameters
    ----------
    base, name : str
        The path in two parts.

    Attributes
    ----------
    files : dict of str to int
        Sizes in bytes by name, relative to `base`.
    links : dict of str to str
        Targets by name.
    unreadable : list of str
        Absolute paths.
    """

    def __init__(self, base: str, name: str) -> None:
        self.base, self.top = base, name
        self.files: dict[str, int] = {}
        self.links: dict[str, str] = {}
        self.unreadable: list[str] = []
        self.visited: set[str] = set()  # real paths, because links may form a cycle
        self._add(name)

    def _add(self, name: str) -> None:
        path = os.path.join(self.base, name)
        if os.path.isdir(path):
            self._add_folder(name, path)
        elif os.path.isfile(path):  # not a pipe, socket or device
            self.files[name] = os.stat(path).st_size
            if not os.access(path, os.R_OK):
                self.unreadable.append(path)

    def _add_folder(self, name: str, path: str) -> None:
        real = os.path.realpath(path)
        if real in self.visited or len(self.files) > MOST_FILES:
            return
        self.visited.add(real)
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError:
            self.unreadable.append(path)
            return
        for entry in entries:
            inner = entry.name if name == "." else f"{name}/{entry.name}"
            target = os.readlink(entry.path) if entry.is_symlink() else ""
            if target and self._stays_inside(inner, target):
                self.links[inner] = target
            else:
                self._add(inner)

    def _stays_inside(self, name: str, target: str) -> bool:
        if os.path.isabs(target) or not os.path.exists(os.path.join(self.base, name)):
            return False
        led_to = os.path.normpath(os.path.join(os.path.dirname(name), target))
        if self.top == ".":
            return not led_to.startswith("..")
        return led_to.startswith(self.top + "/")


def digests(request: dict[str, Any]) -> dict[str, Any]:
    """Compute the digests of files that other hosts have, too.

    Parameters
    ----------
    request : dict
        `files`: pairs of base and name, as `find` returns them; `within_s`: time limit in seconds.

    Returns
    -------
    dict
        `digests`, in the order of the files; those that were not reached in time are left out.
    """
    deadline = time.monotonic() + request["within_s"]
    found: list[str] = []
    for base, name in request["files"]:
        if time.monotonic() > deadline:
            break
        found.append(workdir_files.digest(os.path.realpath(os.path.join(base, name))))
    return {"digests": found}

"""The files of a working directory on a node: whether it is the launch machine's own, and whether its files are equal.

The launch machine runs `digests` on its own side, so that both sides mean the same by equal.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

# Code is hashed whole. Of a larger file (data, a checkpoint that nobody ignored) the ends and the size tell enough, and
# a disk full of them keeps nobody waiting.
WHOLE_BYTES = 64 * 1024 * 1024
END_BYTES = 1024 * 1024
SHOWN = 20
INSTALL = "install it there, for example: sudo apt-get install -y rsync"


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Say whether the launch machine's directory is seen here; if not, get ready to receive a copy.

    Parameters
    ----------
    request : dict
        `workdir`, an absolute path; `token`, the name of a file that the launch machine has just made in its own.
    """
    workdir = request["workdir"]
    if request["token"] and os.path.lexists(os.path.join(workdir, request["token"])):
        return {"shared": True}
    problems = []
    if shutil.which("rsync") is None:
        problems.append({"what": "rsync is not installed there", "fix": INSTALL})
    try:
        os.makedirs(workdir, exist_ok=True)
    except OSError as error:
        what = f"the working directory {workdir} cannot be made: {error.strerror}"
        problems.append({"what": what, "fix": "make it there for this user, or name another one with --workdir"})
    else:
        if not os.access(workdir, os.W_OK | os.X_OK):
            what = f"the working directory {workdir} cannot be written"
            problems.append({"what": what, "fix": "give this user the right, or name another one with --workdir"})
    return {"shared": False, "problems": problems}


def check(request: dict[str, Any]) -> dict[str, Any]:
    """Compare the files here with those of the launch machine.

    Parameters
    ----------
    request : dict
        `workdir`; `digests`, what `digests` returned there; `within_s`, after how many seconds to give up.

    Returns
    -------
    dict
        `checked`, how many files were compared; `missing` and `differing`, how many are not here or not equal; `names`,
        the first of those.
    """
    wanted: dict[str, str] = request["digests"]
    found = digests(request["workdir"], wanted, request["within_s"])
    missing = [name for name, digest in found.items() if not digest]
    differing = [name for name, digest in found.items() if digest and digest != wanted[name]]
    names = sorted([*missing, *differing])[:SHOWN]
    return {"checked": len(found), "missing": len(missing), "differing": len(differing), "names": names}


def digests(root: str, names: Iterable[str], within_s: float) -> dict[str, str]:
    """Return the digest of each file below `root`, empty where there is none; as many as can be read in time."""
    deadline = time.monotonic() + within_s
    found: dict[str, str] = {}
    for name in names:
        if time.monotonic() > deadline:
            break
        found[name] = digest(os.path.join(root, name))
    return found


def digest(path: str) -> str:
    """Return a text that is the same for equal files and equal links; empty when there is no such file."""
    try:
        if os.path.islink(path):
            return "link " + hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest()
        if not os.path.isfile(path):
            return ""
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= WHOLE_BYTES:
                return hashlib.sha256(file.read(WHOLE_BYTES + 1)).hexdigest()
            ends = hashlib.sha256(file.read(END_BYTES))
            file.seek(-END_BYTES, os.SEEK_END)
            ends.update(file.read(END_BYTES))
            return f"{size} {ends.hexdigest()}"
    except OSError:  # also: it may not be read
        return ""

"""The working directory of a node, compared with the launch machine's: the same directory, or equal files.

The launch machine runs the same `digests` on its own files.
"""

from __future__ import annotations

import os
import time

from torchfab.remote import light_stdlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

# Small files are hashed completely. For a larger one (data, a checkpoint missing from .gitignore) the size and both
# ends suffice, so that a disk full of such files does not delay the check.
WHOLE_BYTES = 64 * 1024 * 1024
END_BYTES = 1024 * 1024
SHOWN = 20
INSTALL = "install it there, for example: sudo apt-get install -y rsync"


def prepare_workdir(request: dict[str, Any]) -> dict[str, Any]:
    """Check whether the launch machine's directory is shared with this node; if not, prepare to receive a copy.

    Parameters
    ----------
    request : dict
        `workdir`, an absolute path; `token`, the name of a file that the launch machine has just made in its own.

    Returns
    -------
    dict
        `shared`; if that is false, also `problems`, each with `what` and `fix`.
    """
    workdir = request["workdir"]
    if request["token"] and os.path.lexists(os.path.join(workdir, request["token"])):
        return {"shared": True}
    problems = []
    import shutil  # imported here: a launch only reads files

    if shutil.which("rsync") is None:
        problems.append({"what": "rsync is not installed there", "fix": INSTALL})
    try:
        os.makedirs(workdir, exist_ok=True)
    except OSError as error:
        problem = f"the working directory {workdir} cannot be created: {error.strerror}"
        problems.append({"what": problem, "fix": "create it there for this user, or name another one with --workdir"})
    else:
        if not os.access(workdir, os.W_OK | os.X_OK):
            problem = f"the working directory {workdir} cannot be written"
            fix = "give this user write permission, or name another one with --workdir"
            problems.append({"what": problem, "fix": fix})
    return {"shared": False, "problems": problems}


def check(request: dict[str, Any]) -> dict[str, Any]:
    """Compare the files here with those of the launch machine.

    Parameters
    ----------
    request : dict
        `workdir`; `digests`, the launch machine's result of `digests`; `within_s`, the time limit in seconds.

    Returns
    -------
    dict
        `checked`, the number of files compared; `missing` and `differing`, the numbers of files that do not exist here
        or are not equal; `names`, the first SHOWN of these files.
    """
    expected: dict[str, str] = request["digests"]
    found = digests(request["workdir"], expected, request["within_s"])
    missing = [name for name, digest in found.items() if not digest]
    differing = [name for name, digest in found.items() if digest and digest != expected[name]]
    names = sorted([*missing, *differing])[:SHOWN]
    return {"checked": len(found), "missing": len(missing), "differing": len(differing), "names": names}


def digests(root: str, names: Iterable[str], within_s: float) -> dict[str, str]:
    """Compute the digest of each file, as many as the time allows.

    Parameters
    ----------
    root : str
        The folder.
    names : iterable of str
        The files, relative to `root`.
    within_s : float
        Time limit in seconds; files that are not reached by then are left out.

    Returns
    -------
    dict of str to str
        Digest by name; empty for a missing file.
    """
    deadline = time.monotonic() + within_s
    found: dict[str, str] = {}
    for name in names:
        if time.monotonic() > deadline:
            break
        found[name] = digest(os.path.join(root, name))
    return found


def digest(path: str) -> str:
    """Compute the digest of one file or symbolic link.

    Parameters
    ----------
    path : str
        The file.

    Returns
    -------
    str
        Equal for equal files and for equal links; empty if the file does not exist or cannot be read.
    """
    try:
        if os.path.islink(path):
            return f"link {light_stdlib.sha256(os.fsencode(os.readlink(path))).hexdigest()}"
        if not os.path.isfile(path):
            return ""
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= WHOLE_BYTES:
                return str(light_stdlib.sha256(file.read(WHOLE_BYTES + 1)).hexdigest())
            ends = light_stdlib.sha256(file.read(END_BYTES))
            file.seek(-END_BYTES, os.SEEK_END)
            ends.update(file.read(END_BYTES))
            return f"{size} {ends.hexdigest()}"
    except OSError:  # also without permission to read it
        return ""

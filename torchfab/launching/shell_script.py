"""Search a shell script that every rank runs for launchers, which would start ranks inside every rank."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from torchfab.core.command import SHELLS

MAX_BYTES = 200_000
_LAUNCHER = re.compile(
    r"(?:^|[\s;&|(])(torchrun|deepspeed|mpirun|mpiexec|horovodrun|srun|accelerate(?:\s+|-)launch"
    r"|python[\d.]*\s+(?:-\S+\s+)*-m\s+torch\.distributed\.(?:run|launch))(?=\s|$)"
)


def describe_launcher(command: Sequence[str], cwd: str) -> str:
    """Return a note about a launcher in a shell script.

    Parameters
    ----------
    command : sequence of str
        The command that every rank runs.
    cwd : str
        The working directory on this machine.

    Returns
    -------
    str
        Empty if it is not a shell script, or no launcher is found.
    """
    name = command[1] if os.path.basename(command[0]) in SHELLS and len(command) > 1 else command[0]
    try:
        with open(os.path.join(cwd, name), "rb") as file:
            text = file.read(MAX_BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return ""
    found = find_launcher(text)
    if not found or not (name != command[0] or text.startswith("#!")):
        return ""
    number, launcher = found
    return (
        f"{name}:{number} starts {launcher}, and every rank runs {name}: if that starts ranks too, fab import {name} "
        f"prints the line that launches them instead; --nproc-per-node 1 runs it once per node"
    )


def find_launcher(text: str) -> tuple[int, str] | None:
    """Return the first launcher that a shell script calls.

    Parameters
    ----------
    text : str
        The script.

    Returns
    -------
    tuple of int and str, or None
        The number of the line, and the launcher.
    """
    for number, line in enumerate(text.splitlines(), 1):
        match = _LAUNCHER.search(line.partition("#")[0])
        if match and not re.search(r"\b(?:echo|which|type|command|pip|import|#)\b", line[: match.start(1)]):
            return number, " ".join(match[1].split())
    return None

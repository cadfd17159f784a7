"""`colossalai run` with our ssh in the place of its own: `colossalai_run.py run ...`.

Its own sends the whole environment of this process on the remote command line, in double quotes that a value can close,
and knows no option of ssh but the port. The nodes have their environment already.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


SSH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rsh.py")


class Connection:
    """What `colossalai run` uses of fabric.Connection."""

    def __init__(self, host: str, port: int | None = None) -> None:
        self.host = host

    def cd(self, folder: str) -> Any:
        """The gate of the node is in the right folder."""
        return contextlib.nullcontext()

    def prefix(self, command: str) -> Any:
        """The gate of the node has the right environment."""
        return contextlib.nullcontext()

    def run(self, command: str, hide: bool = False) -> None:
        """Run a command on the node."""
        code = subprocess.call([sys.executable, "-I", "-S", SSH, self.host, command])
        if code:
            raise RuntimeError(f"exit code {code}")

    local = run

    def close(self) -> None:
        """Each command was a connection of its own."""


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # not our own folder, whose files have names of modules
    import fabric

    fabric.Connection = Connection
    from colossalai.cli import cli  # type: ignore[import-untyped,import-not-found,unused-ignore]

    cli()

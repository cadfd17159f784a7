"""`colossalai run` with rsh.py in place of its Fabric connections: `colossalai_run.py run ...`.

ColossalAI's own connection sends the whole environment of this process on the remote command line, in double quotes
that a value can close, and supports no ssh option except the port. The relays already have the nodes' environment.
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
    """The part of fabric.Connection that `colossalai run` uses.

    Parameters
    ----------
    host : str
        Name of the node.
    port : int, optional
        Ignored: rsh.py knows the port.
    """

    def __init__(self, host: str, port: int | None = None) -> None:
        self.host = host

    def cd(self, folder: str) -> Any:
        """Do nothing: the relay of the node runs in the right folder.

        Parameters
        ----------
        folder : str
            Ignored.

        Returns
        -------
        context manager
            An empty one.
        """
        return contextlib.nullcontext()

    def prefix(self, command: str) -> Any:
        """Do nothing: the relay of the node has the right environment.

        Parameters
        ----------
        command : str
            Ignored.

        Returns
        -------
        context manager
            An empty one.
        """
        return contextlib.nullcontext()

    def run(self, command: str, hide: bool = False) -> None:
        """Run a command on the node.

        Parameters
        ----------
        command : str
            The command, as shell.
        hide : bool
            Ignored. Default False.

        Raises
        ------
        RuntimeError
            The command failed.
        """
        code = subprocess.call([sys.executable, "-I", "-S", SSH, self.host, command])
        if code:
            raise RuntimeError(f"exit code {code}")

    local = run

    def close(self) -> None:
        """Do nothing: each command has a connection of its own."""


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # not the folder of this file: its files would shadow modules
    import fabric

    fabric.Connection = Connection
    from colossalai.cli import cli  # type: ignore[import-untyped,import-not-found,unused-ignore]

    cli()

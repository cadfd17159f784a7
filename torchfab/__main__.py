"""The command `torchfab`, also as `python -m torchfab` and, for a supervisor in tmux, by the path of this file."""

from __future__ import annotations

import os
import sys
from types import ModuleType

PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main() -> None:
    """Run the command line to its end."""
    from torchfab.cli.program import TorchfabProgram

    TorchfabProgram.make(_tasks).run()


def _tasks() -> ModuleType:
    from torchfab import fabfile

    return fabfile


def _correct_path() -> None:
    """Keep modules of the current folder (`python -m`), or of this one, from replacing those of Python."""
    if not __package__:  # run by its path: this folder comes first
        sys.path[0] = PACKAGES
    elif sys.path[0] in ("", os.getcwd()) and sys.path[0] != PACKAGES:
        del sys.path[0]
        if PACKAGES not in sys.path:
            sys.path.insert(0, PACKAGES)


if __name__ == "__main__":
    _correct_path()
    main()

"""The small programs that launchers put on the nodes, as texts: `torchfab/remote/shims`, one file each.

gate        the door of a node: takes what the head's ssh brings, and runs it where its supervisor sees it
head        runs the launcher, and at its end tells the gates to which it never came
ssh         the ssh of the head: brings a command to the gate of a node
rank        one rank: says who it is, keeps its log and its exit code
colossal    `colossalai run` with that ssh
network     what `fab network` runs
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "remote" / "shims"


@cache
def text(name: str) -> str:
    """Return the source of one of them."""
    return (_FOLDER / f"{name}.py").read_text(encoding="utf-8")

"""The source of the small programs (shims) that launchers put on the nodes: `torchfab/remote/shims`, one file each.

relay       on every node: runs the command that the head's ssh delivers, as a child of the node's supervisor
head        runs the launcher, and at its end notifies the relays that got no command
rsh         the ssh of the head: delivers a command to the relay of a node
rank        one rank: sets its environment, records its log and its exit code
colossalai_run  `colossalai run` with that ssh
network_benchmark   the ranks of `fab network`
call        one rank of a Python function that runs on all ranks
probe       the sitecustomize of the ranks: a private socket that reports their collectives
rank_profile  what the probe loads when it is asked to profile its rank
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "remote" / "shims"


@cache
def source_of(name: str) -> str:
    """Return the source of a shim.

    Parameters
    ----------
    name : str
        Its name, without suffix.

    Returns
    -------
    str
    """
    return (_FOLDER / f"{name}.py").read_text(encoding="utf-8")

"""torchrun as torchfab starts it: before its agent ends ranks, the node's supervisor lets them save.

The agent also ends them for reasons that no signal shows: a node joins or leaves, or the store of the rendezvous is
gone. So it sends SIGURG to itself first. The supervisor, which watches it (`torchfab.remote.job.peer_end`), holds it
until the ranks have ended. Without a supervisor nothing happens, because SIGURG is ignored.
"""

from __future__ import annotations

FILE = "torchrun_agent.py"
CODE = """\
import os, signal, sys
from torch.distributed import run
from torch.distributed.elastic.multiprocessing import api
ranks = getattr(api, "SubprocessContext", None)
end = getattr(ranks, "_close", None)
def end_after_supervisor(*args, **options):
    os.kill(os.getpid(), signal.SIGURG)
    end(*args, **options)
if end:
    ranks._close = end_after_supervisor
sys.exit(run.main())
"""


def arguments(path: str = "") -> tuple[str, ...]:
    """Return what an interpreter gets to run torchrun; the options of torchrun follow.

    Parameters
    ----------
    path : str
        A file with the text `CODE`, on every node. Default: none; the arguments contain the text.

    Returns
    -------
    tuple of str
    """
    return (path,) if path else ("-c", CODE)

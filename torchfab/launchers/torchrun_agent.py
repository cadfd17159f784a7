"""Start torchrun so that the node's supervisor lets the ranks save before torchrun's agent ends them.

The agent also ends them for reasons that no signal shows: a node joins or leaves, or the store of the rendezvous is
lost. Therefore it sends SIGURG to itself first. The supervisor, which traces it (`torchfab.remote.job.peer_end`), stops
it until the ranks have ended. Without a supervisor nothing happens, because SIGURG is ignored.
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
    """Return the arguments with which an interpreter runs torchrun; the options of torchrun follow them.

    Parameters
    ----------
    path : str
        A file with the text `CODE`, on every node. Default: none; the arguments contain the text.

    Returns
    -------
    tuple of str
    """
    return (path,) if path else ("-c", CODE)

"""torchrun as torchfab starts it: before its agent ends ranks, the node's supervisor lets them save.

The agent also ends them for reasons that no signal shows: a node joins or leaves, or the store of the rendezvous is
gone. So it sends SIGURG to itself first. The supervisor, which watches it (`torchfab.remote.job.peer_end`), holds it
until the ranks have ended. Without a supervisor nothing happens, because SIGURG is ignored.
"""

from __future__ import annotations

from torchfab.core.specs import Job

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


def command(job: Job, path: str = "") -> tuple[str, ...]:
    """Return the first words of a torchrun command; its options follow.

    Parameters
    ----------
    job : Job
        The job, as it runs on the node.
    path : str
        A file with the text `CODE`, on every node. Default: none; the command contains the text.

    Returns
    -------
    tuple of str
    """
    return (job.python, path) if path else (job.python, "-c", CODE)

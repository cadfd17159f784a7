"""Send a signal as a notice to ranks: once to each, and to no process above or below it.

A signal is not sent to a rank that it would end: SIGUSR1 and SIGUSR2 end a process that does not handle them.
"""

from __future__ import annotations

import os
import signal

from torchfab.remote import job_files, procfs
from torchfab.remote.job import status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Signals that have no effect on a process without a handler.
_HARMLESS = (signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)
# The program of `torchfab.remote.shims.rank` in the job's folder: it passes signals on to the script below it.
_SHIM = "rank.py"


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Signal the job's ranks on this node.

    Parameters
    ----------
    request : dict
        As `signal_ranks` takes it, with the keys that `files.folder_of` needs.

    Returns
    -------
    dict
        As `signal_ranks` returns it.
    """
    return signal_ranks(job_files.folder_of(request), request)


def signal_ranks(folder: str, request: dict[str, Any]) -> dict[str, Any]:
    """Send a signal to the running ranks in a job's folder.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    request : dict
        `signal` (its name), `ranks` (which ones; None: all), `send` (False: only report its effect).

    Returns
    -------
    dict
        `ranks`: one entry per running rank: `rank`, `pid`, `effect` (see `effect`), `sent`.
    """
    number = signal.Signals[request["signal"]]
    found = []
    for rank in running_ranks(folder):
        if request["ranks"] is None or rank["rank"] in request["ranks"]:
            what = effect(script_of(rank["pid"], folder), number)
            sent = request["send"] and what != "ends" and _send(rank, number)
            found.append({"rank": rank["rank"], "pid": rank["pid"], "effect": what, "sent": bool(sent)})
    return {"ranks": found}


def running_ranks(folder: str) -> list[dict[str, Any]]:
    """Return the ranks in a job's folder that run.

    Parameters
    ----------
    folder : str
        The job's folder on this node.

    Returns
    -------
    list of dict
        Their entries in ranks.json.
    """
    ranks = [rank for name in job_files.processes(folder) for rank in status.read_ranks(os.path.join(folder, name))]
    return [each for each in ranks if not each["ended"] and procfs.is_alive(each["pid"], each["start_time"])]


def script_of(pid: int, folder: str) -> int:
    """Return the process that handles the signals of a rank.

    Parameters
    ----------
    pid : int
        The rank.
    folder : str
        The job's folder on this node.

    Returns
    -------
    int
        The rank itself; if it is torchfab's own `rank.py`, its child.
    """
    is_shim = any(word.startswith(folder) and os.path.basename(word) == _SHIM for word in procfs.command_line(pid))
    below = procfs.children(pid) if is_shim else []
    return below[0] if below else pid


def effect(pid: int, number: signal.Signals) -> str:
    """Return the effect of a signal on a process.

    Parameters
    ----------
    pid : int
        The process.
    number : signal.Signals
        The signal.

    Returns
    -------
    str
        "handled", "ignored", or "ends": the process has no handler, and the signal would end it.
    """
    if procfs.handles(pid, number):
        return "handled"
    return "ignored" if number in _HARMLESS or procfs.ignores(pid, number) else "ends"


def _send(rank: dict[str, Any], number: signal.Signals) -> bool:
    try:
        os.kill(rank["pid"], number)
    except OSError:  # it has just ended, or belongs to another user
        return False
    return True

"""What torchrun starts for each rank: a line of shell that becomes the rank.

- It notes which process is which rank: a rank may have ended before its supervisor looks.
- It sends both streams of the rank into one file, so that they keep the order in which they were written. torchrun
  itself has a file for each.
"""

from __future__ import annotations

from torchfab.core.specs import Job
from torchfab.launchers import escape_for_torchrun

FILE = "rank.sh"
# torchrun gives each rank <log dir>/<run>/attempt_<k>/<local rank>/error.json. One short line is appended at once.
_NOTE = (
    'echo "$RANK $LOCAL_RANK $WORLD_SIZE $TORCHELASTIC_RESTART_COUNT $$" 2>/dev/null '
    '>>"${TORCHELASTIC_ERROR_FILE%/*/*/*/*}/ranks"'
)
_BECOME = 'exec "$@" 2>&1'
SCRIPT = f"""# Run by torchrun for each rank, with the rank's command: note the rank's process, then become it.
{_NOTE}
{_BECOME}
"""


def command(job: Job, path: str = "") -> tuple[str, ...]:
    """Return the last words of a torchrun command: what it runs for each rank, escaped.

    Parameters
    ----------
    job : Job
        The job, as it runs on the node.
    path : str
        A file with the text `SCRIPT`, on every node. Default: none; the command contains the text.

    Returns
    -------
    tuple of str
    """
    shell = ("sh", path) if path else ("sh", "-c", f"{_NOTE}; {_BECOME}", "rank")
    # -u as torchrun gives it to scripts.
    rank = job.argv if job.is_program else (job.python, "-u", *job.script)
    return ("--no-python", *escape_for_torchrun((*shell, *rank)))

"""The program that torchrun starts for each rank: a few lines of Python that exec the rank's own command.

- They record the process id of each rank: a rank may have ended before its supervisor checks.
- They write stdout and stderr of the rank to one file, so that lines stay in the order in which they were written.
  torchrun itself has a file for each stream.

torchrun's failure report names the first word after its own interpreter that is not an option: still the script.
"""

from __future__ import annotations

from torchfab.core.specs import Job
from torchfab.launchers import escape_for_torchrun

FILE = "become_rank.py"
# torchrun gives each rank <log dir>/<run>/attempt_<k>/<local rank>/error.json. One short line is appended at once.
CODE = """\
import os, sys
os.dup2(1, 2)
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
words = [*(os.environ.get(name, "-") for name in names), str(os.getpid())]
path = os.environ.get("TORCHELASTIC_ERROR_FILE", "")
folder = os.path.normpath(os.path.join(path, *[os.pardir] * 4))
try:
    with open(os.path.join(folder, "ranks") if path else os.devnull, "a") as file:
        file.write(" ".join(words) + chr(10))
except OSError:
    pass
command = [sys.executable, *sys.argv[1:]] if sys.argv[1] == "-u" else sys.argv[1:]
os.execvp(command[0], command)
"""


def command(job: Job, path: str = "") -> tuple[str, ...]:
    """Return the end of a torchrun command: the program that it runs for each rank, and its arguments, escaped.

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
    code = f"exec(open({path!r}).read())" if path else CODE
    # -u, as torchrun passes it to scripts.
    rank = job.argv if job.is_program else ("-u", *job.script)
    return ("--no-python", *escape_for_torchrun((job.python, "-I", "-S", f"-c{code}", *rank)))

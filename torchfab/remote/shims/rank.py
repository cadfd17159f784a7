"""One rank: says who it is as torch.distributed wants to hear it, and runs the script, unchanged.

    rank.py --logs COMMAND...       with its output in logs/rank-N.log beside this file, not through the launcher
    rank.py --script WORDS...       the command in script.json beside this file, and these words

It stays as the script's parent, for what the launchers cannot do: it passes signals on, holds the exit code until the
supervisor has read it (launchers tell 1, or the OR of all codes), and ends the other ranks where the launcher would
not.

Stands alone (standard library, Python 3.9): a dry run that was pasted into bash has nothing else.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


HERE = os.path.dirname(os.path.abspath(__file__))
WANTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
TOLD = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS"),
)
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
HOLD_S = 1.0
PR_SET_PDEATHSIG = 1


def main(words: list[str]) -> None:
    """Run the rank and end as it ends."""
    env = environment(os.environ)
    option, *command = words
    if option == "--logs":
        write_to(os.path.join(HERE, "logs", f"rank-{env['RANK']}.log"))
    else:
        command = script() + command
    # A session of its own: a launcher that signals our group would reach it twice.
    child = subprocess.Popen(
        command,
        env=env,
        close_fds=False,  # PMI talks over an inherited one
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509  # there is one thread
    )
    for number in FORWARDED:
        signal.signal(number, lambda got, _: os.kill(child.pid, got))  # not reaped yet: it is there
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    if "RANK" not in os.environ:  # else the supervisor takes us for the rank
        hold(child.pid)
    end_as(child.wait(), env)


def environment(told: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the rank."""
    env = dict(told)
    for names in TOLD:
        if names[0] in told:
            env.update(zip(WANTED, (told[name] for name in names)))
    if "RANK" not in env:
        sys.exit("torchfab: neither Open MPI nor MPICH nor RANK says which rank this is")
    env.setdefault("TORCHELASTIC_ERROR_FILE", os.path.join(HERE, "errors", f"rank-{env['RANK']}.json"))
    return env


def script() -> list[str]:
    """Return the command that lies beside this file."""
    with open(os.path.join(HERE, "script.json"), encoding="utf-8") as file:
        return list(json.load(file))


def write_to(path: str) -> None:
    """Send our output, and that of the script, to a file."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def end_with_parent() -> None:
    """In the child: a launcher that kills us means the script, but it gets the time that the job gives (--grace)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def hold(pid: int) -> None:
    """Wait, while the ended child is a zombie still, until the supervisor has noted its exit code."""
    deadline = time.monotonic() + HOLD_S
    while os.path.exists(os.path.join(HERE, "started.json")) and time.monotonic() < deadline:
        try:
            with open(os.path.join(HERE, "ranks.json")) as file:
                ranks = json.load(file)
        except (OSError, ValueError):
            ranks = []
        if any(rank["pid"] == pid and rank["ended"] for rank in ranks):
            return
        time.sleep(0.01)


def end_as(code: int, env: Mapping[str, str]) -> None:
    """End with that code, or by that signal."""
    if code and "PMI_FD" in env:
        # MPICH leaves the other ranks alone when one fails without MPI_Abort: say what that says (PMI-1, cmd=abort).
        os.write(int(env["PMI_FD"]), b"cmd=abort exitcode=%d\n" % (code if code > 0 else 128 - code))
    if code >= 0:
        sys.exit(code)
    if -code in FORWARDED:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)


if __name__ == "__main__":
    main(sys.argv[1:])

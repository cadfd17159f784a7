"""One rank: sets the environment variables of torch.distributed and runs the unchanged script.

    rank.py --logs COMMAND...       runs COMMAND; its output goes to logs/rank-N.log beside this file
    rank.py --script ARGS...        runs the command in script.json beside this file, with ARGS appended

It remains the parent of the script and adds what launchers lack: it forwards signals, keeps the exit code until the
supervisor has recorded it (launchers report 1, or the OR of all codes), and makes MPICH end the other ranks.

Needs only the standard library of Python 3.9: the output of a dry run, pasted into bash, has no other modules.
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
TORCH_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
MPI_NAMES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS"),
)
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
RECORD_TIMEOUT_S = 1.0
PR_SET_PDEATHSIG = 1


def main(args: list[str]) -> None:
    """Run the rank and exit as it does.

    Parameters
    ----------
    args : list of str
        The command line, without the name of this program.
    """
    env = environment(os.environ)
    option, *command = args
    if option == "--logs":
        redirect_output(os.path.join(HERE, "logs", f"rank-{env['RANK']}.log"))
    else:
        command = read_script() + command
    child = start(command, env)
    note_rank(env, child.pid if "RANK" not in os.environ else os.getpid())
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    if "RANK" not in os.environ:  # otherwise the supervisor would mistake this process for the rank
        wait_until_recorded(child.pid)
    exit_like(child.wait(), env)


def start(command: list[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the script. From now on, signals are forwarded to it, including those that arrive while it starts.

    Parameters
    ----------
    command : list of str
        The script and its arguments.
    env : Mapping of str to str
        Its environment.

    Returns
    -------
    subprocess.Popen
        The script, in a session of its own: otherwise a launcher that signals our process group would signal it twice.
    """
    early: list[int] = []
    for number in FORWARDED:
        signal.signal(number, lambda received, _: early.append(received))
    child = subprocess.Popen(
        command,
        env=env,
        close_fds=False,  # PMI uses an inherited descriptor
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509  # there is only one thread
    )
    for number in FORWARDED:
        signal.signal(number, lambda received, _: os.kill(child.pid, received))  # not reaped yet: the pid is valid
    for received in early:
        os.kill(child.pid, received)
    return child


def note_rank(env: Mapping[str, str], pid: int) -> None:
    """Record the process of this rank: it may have ended before the supervisor checks.

    Parameters
    ----------
    env : Mapping of str to str
        The environment of the rank.
    pid : int
        Its process.
    """
    words = (*(env.get(name, "-") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")), "0", str(pid))
    try:
        with open(os.path.join(HERE, "logs", "ranks"), "a") as file:
            file.write(" ".join(words) + "\n")
    except OSError:  # a full disk, or a launcher without a log folder
        pass


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the rank.

    Parameters
    ----------
    inherited : Mapping of str to str
        The environment that the launcher gave to this process.

    Returns
    -------
    dict of str to str
        The same, with the variables of torch.distributed.

    Raises
    ------
    SystemExit
        No variable holds the rank.
    """
    env = dict(inherited)
    for names in MPI_NAMES:
        if names[0] in inherited:
            env.update(zip(TORCH_NAMES, (inherited[name] for name in names)))
    if "RANK" not in env:
        sys.exit("torchfab: the rank is unknown: neither Open MPI's nor MPICH's variables nor RANK are set")
    env.setdefault("TORCHELASTIC_ERROR_FILE", os.path.join(HERE, "errors", f"rank-{env['RANK']}.json"))
    return env


def read_script() -> list[str]:
    """Read the command from script.json beside this file.

    Returns
    -------
    list of str
        Its argv.
    """
    with open(os.path.join(HERE, "script.json"), encoding="utf-8") as file:
        return list(json.load(file))


def redirect_output(path: str) -> None:
    """Redirect stdout and stderr, which the script inherits, to a file.

    Parameters
    ----------
    path : str
        The file; it is appended to.
    """
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def end_with_parent() -> None:
    """Let the kernel send the child SIGTERM when this process is killed, so that the script keeps its grace period."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def wait_until_recorded(pid: int) -> None:
    """Wait until the supervisor has recorded the exit code of the child, which is still a zombie.

    Parameters
    ----------
    pid : int
        The child.
    """
    deadline = time.monotonic() + RECORD_TIMEOUT_S
    while os.path.exists(os.path.join(HERE, "started.json")) and time.monotonic() < deadline:
        try:
            with open(os.path.join(HERE, "ranks.json")) as file:
                ranks = json.load(file)
        except (OSError, ValueError):
            ranks = []
        if any(rank["pid"] == pid and rank["ended"] for rank in ranks):
            return
        time.sleep(0.01)


def exit_like(code: int, env: Mapping[str, str]) -> None:
    """Exit with the same code, or by the same signal.

    Parameters
    ----------
    code : int
        The return code of the child, negative for a signal.
    env : Mapping of str to str
        The environment of the rank.
    """
    if code and "PMI_FD" in env:
        # MPICH does not end the other ranks when one fails without MPI_Abort: send the same message (PMI-1, cmd=abort).
        os.write(int(env["PMI_FD"]), b"cmd=abort exitcode=%d\n" % (code if code > 0 else 128 - code))
    if code >= 0:
        sys.exit(code)
    if -code in FORWARDED:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)


if __name__ == "__main__":
    main(sys.argv[1:])

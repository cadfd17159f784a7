"""Run a supervisor in a session of the private tmux server on the launch machine.

Its command, working directory and environment (which holds secrets) go through a named pipe that only this user can
open: command lines are visible to every user, and tmux keeps the environment of its first session.

Run as a program (`python detach.py PIPE`), this file reads them from the pipe and executes the command.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SESSION = "TORCHFAB_SUPERVISOR_SESSION"
_TIMEOUT_S = 10.0


def start(name: str, argv: Sequence[str], environ: Mapping[str, str], cwd: str, folder: Path) -> str:
    """Start a command in its own session on the private tmux server of this machine.

    Parameters
    ----------
    name : str
        The job's name.
    argv : sequence of str
        The command, with an absolute path to its program.
    environ : Mapping of str to str
        Its environment, secrets included.
    cwd : str
        Its working directory.
    folder : Path
        Where the named pipe is made, for at most 10 s.

    Returns
    -------
    str
        The name of the tmux session.

    Raises
    ------
    TorchfabError
        tmux is missing or failed, or the new session did not open the pipe within 10 s.
    """
    from torchfab.core.environment import is_secret
    from torchfab.core.errors import TorchfabError

    session, pipe = f"supervise-{name}", folder / "handover"
    document = {"argv": list(argv), "cwd": cwd, "env": {**environ, SESSION: session}}
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe, 0o600)
    try:
        command = [sys.executable, "-I", "-S", __file__, str(pipe)]
        tmux = ["tmux", "-L", "torchfab", "-f", "/dev/null", "new-session", "-d", "-s", session, *command]
        env = {name: value for name, value in environ.items() if not is_secret(name)}
        done = subprocess.run(tmux, env=env, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
        if done.returncode:
            raise TorchfabError(
                f"tmux cannot run the supervisor: {done.stderr.strip()}",
                f"the job is running; to supervise it without tmux: fab supervise {name}",
            )
        _write_to_pipe(pipe, json.dumps(document).encode())
    except (OSError, subprocess.SubprocessError) as error:
        raise TorchfabError(
            f"the supervisor in tmux was not started: {error}",
            f"the job is running; to supervise it without tmux: fab supervise {name}",
        ) from None
    finally:
        pipe.unlink(missing_ok=True)
    return session


def _write_to_pipe(pipe: Path, data: bytes) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            fd = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > deadline:  # ENXIO: no reader yet
                raise
            time.sleep(0.02)
    os.set_blocking(fd, True)
    with os.fdopen(fd, "wb") as file:
        file.write(data)


def main() -> None:
    """Read command, working directory and environment from the pipe, and execute the command."""
    with open(sys.argv[1], "rb") as file:
        document = json.loads(file.read())
    os.chdir(document["cwd"])
    os.execve(document["argv"][0], document["argv"], document["env"])


if __name__ == "__main__":
    main()

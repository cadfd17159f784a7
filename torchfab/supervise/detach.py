"""A supervisor in tmux: the private server of the launch machine runs it, and `fab` hands it what it needs.

Its command, folder and environment (there are secrets in that) go through a named pipe that only this user can open:
not through command lines, which anybody sees, nor through tmux, which keeps the environment of its first session.

Run as a program (`python handover.py PIPE`) it takes them, and becomes the command.
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
_PATIENCE_S = 10.0


def start(name: str, argv: Sequence[str], environ: Mapping[str, str], cwd: str, folder: Path) -> str:
    """Start a command in a session of its own on the private tmux server here; return the session's name.

    Raises
    ------
    TorchfabError
        There is no tmux, it refused, or nobody came for what is handed over.
    """
    from torchfab.core.environment import is_secret
    from torchfab.core.errors import TorchfabError

    session, pipe = f"supervise-{name}", folder / "handover"
    document = {"argv": list(argv), "cwd": cwd, "env": {**environ, SESSION: session}}
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe, 0o600)
    try:
        command = [sys.executable, "-I", "-S", __file__, str(pipe)]
        tmux = ["tmux", "-L", "torchfab", "new-session", "-d", "-s", session, *command]
        env = {name: value for name, value in environ.items() if not is_secret(name)}
        done = subprocess.run(tmux, env=env, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
        if done.returncode:
            raise TorchfabError(
                f"tmux cannot run the supervisor: {done.stderr.strip()}",
                f"the job runs; without tmux: fab supervise {name}",
            )
        _hand_over(pipe, json.dumps(document).encode())
    except (OSError, subprocess.SubprocessError) as error:
        raise TorchfabError(
            f"the supervisor in tmux was not started: {error}", f"the job runs; without tmux: fab supervise {name}"
        ) from None
    finally:
        pipe.unlink(missing_ok=True)
    return session


def _hand_over(pipe: Path, data: bytes) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            handle = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    os.set_blocking(handle, True)
    with os.fdopen(handle, "wb") as file:
        file.write(data)


def main() -> None:
    """Take what is handed over, and become it."""
    with open(sys.argv[1], "rb") as file:
        document = json.loads(file.read())
    os.chdir(document["cwd"])
    os.execve(document["argv"][0], document["argv"], document["env"])


if __name__ == "__main__":
    main()

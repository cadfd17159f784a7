"""The process that a supervisor answers for: started and reaped, with no more of the standard library than that takes.

`subprocess` would do, and its import takes a third of the time in which a supervisor starts.
"""

from __future__ import annotations

import errno
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Child:
    """A child process.

    Parameters
    ----------
    pid : int
        Its pid.

    Attributes
    ----------
    returncode : int or None
        Its exit code once it was reaped, negative for a signal.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Reap it if it has ended; return its exit code, None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def start(argv: Sequence[str], env: Mapping[str, str], cwd: str, output: int, before_exec: Callable[[], None]) -> Child:
    """Start a program in a session of its own, nothing on its standard input; call only where there is one thread.

    Parameters
    ----------
    output : int
        File descriptor of its stdout and stderr.
    before_exec : callable
        Called in the child.

    Raises
    ------
    OSError
        It could not be started.
    """
    reader, writer = os.pipe()  # closed by a successful exec; tells the errno of one that fails
    pid = os.fork()
    if pid == 0:
        _become(argv, env, cwd, output, before_exec, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        error = file.read()
    if error:
        os.waitpid(pid, 0)
        raise OSError(int(error), os.strerror(int(error)))
    return Child(pid)


def _become(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    output: int,
    before_exec: Callable[[], None],
    writer: int,
) -> None:
    number = errno.EINVAL  # a NUL byte in a word
    try:
        signal.set_wakeup_fd(-1)  # that pipe is the parent's
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(cwd)
        # Python itself ignores these two; a program expects to be ended by them.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        before_exec()
        _close_all_but(writer)
        os.execvpe(argv[0], list(argv), dict(env))
    except OSError as error:
        number = error.errno or number
    finally:
        os.write(writer, str(number).encode())
        os._exit(127)


def _close_all_but(handle: int) -> None:
    # Of ours, all close at the exec; those that we were given ourselves may not.
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != handle:
            try:
                os.close(int(name))
            except OSError:  # the one that listed them
                pass

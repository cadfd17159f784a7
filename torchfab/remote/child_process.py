"""Start and reap the process that a supervisor is responsible for, with a minimum of the standard library.

`subprocess` would work as well, but its import takes a third of a supervisor's start-up time.
"""

from __future__ import annotations

import errno
import os

from torchfab.remote import light_stdlib
from torchfab.remote.light_stdlib import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PR_SET_PDEATHSIG = 1


class Child:
    """A child process.

    Parameters
    ----------
    pid : int
        Its pid.

    Attributes
    ----------
    returncode : int or None
        Its exit code once it is reaped, negative for a signal; None before.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Reap the process if it has ended.

        Returns
        -------
        int or None
            Its exit code; None while it runs.
        """
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            # A traced process (see `torchfab.remote.job.launcher_hold`) also reports that it has stopped.
            has_ended = pid and not os.WIFSTOPPED(status)
            self.returncode = os.waitstatus_to_exitcode(status) if has_ended else None
        return self.returncode


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent of this process dies, so that nothing runs unsupervised."""
    light_stdlib.c_function("prctl")(_PR_SET_PDEATHSIG, signal.SIGTERM)


def start(argv: Sequence[str], env: Mapping[str, str], cwd: str, output: int, before_exec: Callable[[], None]) -> Child:
    """Start a program in a session of its own, with /dev/null as stdin; call only from a single-threaded process.

    Parameters
    ----------
    argv : sequence of str
        The command line.
    env : mapping of str to str
        The whole environment.
    cwd : str
        The working directory.
    output : int
        File descriptor for its stdout and stderr.
    before_exec : callable
        Called in the child.

    Returns
    -------
    Child
        The running process.

    Raises
    ------
    OSError
        The program cannot be started.
    """
    reader, writer = os.pipe()  # closed by a successful exec; a failed one writes its errno
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
    error_number = errno.EINVAL  # a NUL byte in an argument
    try:
        signal.set_wakeup_fd(-1)  # that pipe is the parent's
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(cwd)
        # Python ignores these two signals; other programs expect to be terminated by them.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        before_exec()
        _close_all_but(writer)
        os.execvpe(argv[0], list(argv), dict(env))
    except OSError as error:
        error_number = error.errno or error_number
    finally:
        os.write(writer, str(error_number).encode())
        os._exit(127)


def _close_all_but(kept_fd: int) -> None:
    # Descriptors that this process opened are close-on-exec; those that it inherited may not be.
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != kept_fd:
            try:
                os.close(int(name))
            except OSError:  # the descriptor of the listing itself
                pass

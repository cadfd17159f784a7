"""The supervisor of the job's processes on a node: their parent (compare tini and dumb-init).

One runs on each node, in the first tmux window of the job's session, without the standard library's site module.
It does four things for each process (see `torchfab.remote.job.process_watch`):

1. It starts the process, in a session of its own, with exactly the environment of its spec.
2. It is the subreaper (prctl(2), PR_SET_CHILD_SUBREAPER) of all descendants of the process. A descendant that
   double-forks or leaves its session becomes its child, so that no descendant keeps running after the process.
3. It writes the start, the ranks, and the end (code, signal, time) to disk, atomically.
4. It ends the process so that its ranks can save (`torchfab.remote.job.graceful_end`), passes other signals on to the
   ranks, and shows the process's log files in its window. The process writes to those files itself, so
   neither a viewer nor the death of this supervisor can block it.

No process starts before all nodes of the job are ready (see `torchfab.remote.job.start_barrier`). SIGTERM ends all
processes; a signal from a terminal (Ctrl-C, a closed window) ends only the process of that window. When the supervisor
is killed, the kernel sends SIGTERM to each process.
"""

from __future__ import annotations

import os
import select
import sys
import time

from torchfab.remote import job_files, light_stdlib
from torchfab.remote.job import start_barrier, window_output
from torchfab.remote.job.process_watch import ENDING, ProcessWatch
from torchfab.remote.light_stdlib import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Sequence

_PR_SET_CHILD_SUBREAPER = 36
_FORWARDED = (*ENDING, signal.SIGUSR1, signal.SIGUSR2)
_FROM_TERMINAL = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# Poll interval at the start barrier, as a fallback: normally SIGCHLD or the server's pidfd wakes the supervisor. Other
# nodes may take minutes, and all supervisors wait meanwhile.
_BARRIER_POLL_S, _SHORT_POLL_S = 2.0, 0.1
_KEEP_S = 1.0  # for the answers of the ranks' probes: 2,000 collectives take 40 ms, ten times that on a busy machine


class NodeSupervisor:
    """Supervise the processes of the job on this node, from their start until no process of them is left.

    Parameters
    ----------
    folders : sequence of str
        The processes' folders, which contain their specs; first the one in whose window the supervisor runs.
    env : dict of str to str, optional
        The whole environment of the processes. Default: that of their specs, with their secrets.

    Attributes
    ----------
    watches : list of ProcessWatch
        One for each process, in this order.
    """

    def __init__(self, folders: Sequence[str], env: dict[str, str] | None = None) -> None:
        self.job = os.path.dirname(folders[0])
        self.watches = [ProcessWatch(folder, number, env) for number, folder in enumerate(folders)]
        for watch in self.watches:
            watch.siblings = [each for each in self.watches if each is not watch]
        self.wakeup = _signals_to_pipe()
        self.kept_attempt = -1  # ranks whose collectives have been saved
        self.keeper: threading.Thread | None = None

    def run(self) -> int:
        """Start the processes, watch them until they end, and clean up after them.

        Returns
        -------
        int
            The exit code of the first process that failed, as a shell reports it; 127 if it could not be started, 1 if
            it was never released, 0 if all succeeded.
        """
        _become_subreaper()
        if self._is_released():
            for_each(self.watches, ProcessWatch.start)
            for_each(self.watches, ProcessWatch.record_start)
            while active := [watch for watch in self.watches if watch.code is None]:
                self._wait(min(watch.pause_s() for watch in active))
                self._after_wait(active)
        return next((watch.code for watch in self.watches if watch.code), 0)

    # ---- the start barrier

    def _is_released(self) -> bool:
        """Wait at the start barrier; return whether the processes may start."""
        held_by = self.watches[0].spec.get("held_by")
        if held_by:
            for watch in self.watches:
                start_barrier.report_ready(watch.folder)
        server_pidfds = start_barrier.open_server_pidfd(held_by)
        while (released := start_barrier.may_start(self.job, held_by)) is None and not self._end_signal():
            self._wait(_BARRIER_POLL_S if server_pidfds else _SHORT_POLL_S, server_pidfds)
            for watch in self.watches:
                watch.window.open()
        for pidfd in server_pidfds:
            os.close(pidfd)
        if not released:
            self._refuse()
        return bool(released)

    def _end_signal(self) -> str:
        """Return the signal that requested the end of a process; before the start, it ends all processes."""
        return next((watch.request.signal for watch in self.watches if watch.request.signal), "")

    def _refuse(self) -> None:
        end_signal = self._end_signal()
        reason = f"asked to end ({end_signal})" if end_signal else start_barrier.NEVER_RELEASED
        is_stopped = os.path.exists(os.path.join(self.job, job_files.STOP))
        for watch in self.watches:
            watch.refuse("" if is_stopped else reason)

    # ---- the loop

    def _wait(self, pause_s: float, pidfds: Iterable[int] = ()) -> None:
        """Wait until the kernel reports a signal, the end of a rank or a closed window, or the pause is over."""
        ranks = {pidfd: watch for watch in self.watches if not watch.is_cleaning for pidfd in watch.ranks.pidfds}
        windows = {watch.window.out: watch for watch in self.watches if watch.window.is_viewer and watch.code is None}
        poll = select.poll()
        for fd in (self.wakeup, *pidfds, *ranks):
            poll.register(fd, select.POLLIN)
        for fd in windows:
            if fd >= 0:
                poll.register(fd, 0)  # only errors
        reported = [fd for fd, _ in poll.poll(1000 * pause_s)]
        ended = [fd for fd in reported if fd in ranks]
        for fd in ended:
            ranks[fd].ranks.on_pidfd(fd)
        if ended and any(rank["ended"] and rank["code"] != 0 for watch in self.watches for rank in watch.ranks.ranks):
            self._keep_collectives(wait_s=0.0)
        if self.wakeup in reported:
            self._on_signals(os.read(self.wakeup, 4096))
        self._on_closed_windows([windows[fd] for fd in reported if fd in windows])

    def _keep_collectives(self, wait_s: float) -> None:
        """Save the collectives of the running ranks, which are about to end, once in each attempt.

        This runs in a thread: codes of ranks that end meanwhile must be read before their launcher reaps them.
        """
        attempt = max((rank["attempt"] for watch in self.watches for rank in watch.ranks.ranks), default=-1)
        if attempt <= self.kept_attempt:
            return
        self.kept_attempt = attempt
        import threading  # imported here: most jobs do not need it

        self.keeper = threading.Thread(target=self._keep, daemon=True)
        self.keeper.start()
        self.keeper.join(wait_s)

    def _keep(self) -> None:
        try:
            from torchfab.remote.job import recorder

            recorder.keep(self.job, _KEEP_S)
        except Exception as error:
            self.watches[0].report_error(error)

    def _after_wait(self, active: list[ProcessWatch]) -> None:
        if self.keeper is not None and any(watch.is_cleaning for watch in active):  # `--after` forks
            self.keeper.join(2 * _KEEP_S)
            self.keeper = None
        for_each(active, ProcessWatch.poll)
        self._reap()
        for_each(active, ProcessWatch.advance)

    def _reap(self) -> None:
        """Reap the children that have ended, including adopted ones."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for watch in self.watches:
                if os.WIFSTOPPED(status):  # a traced process reports that too (see `launcher_hold`)
                    watch.on_stopped(pid, status)
                else:
                    watch.on_reaped(pid, os.waitstatus_to_exitcode(status))

    # ---- signals

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGHUP and self._tmux_is_gone():
                continue
            if number in ENDING:
                self._keep_collectives(wait_s=2 * _KEEP_S)
            if number in _FORWARDED:
                for watch in self.watches[:1] if number in _FROM_TERMINAL else self.watches:
                    watch.on_signal(number)

    def _on_closed_windows(self, watches: list[ProcessWatch]) -> None:
        for watch in watches:
            watch.window.forget()
        if watches and not self._tmux_is_gone():
            for watch in watches:
                watch.on_signal(signal.SIGHUP)

    def _tmux_is_gone(self) -> bool:
        # A server that closes a window on request is still running when SIGHUP arrives, even if it was its last window.
        # If no server is running, it was killed: the training then continues without a window. The kernel sends SIGHUP
        # shortly before the killed server disappears, hence the wait.
        deadline = time.monotonic() + 0.2
        while window_output.is_tmux_running():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def for_each(watches: Iterable[ProcessWatch], step: Callable[[ProcessWatch], None]) -> None:
    """Do one step for each process; an error in one step, such as a bug or a broken disk, does not affect the others.

    Parameters
    ----------
    watches : iterable of ProcessWatch
        The processes.
    step : callable
        The step. Its errors are written into a file in the process's folder.
    """
    for watch in watches:
        try:
            step(watch)
        except Exception as error:
            watch.report_error(error)


def _signals_to_pipe() -> int:
    """Make every forwarded signal, and SIGCHLD, write its number into a pipe; return the read end."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    for number in (*_FORWARDED, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _become_subreaper() -> None:
    light_stdlib.c_function("prctl")(_PR_SET_CHILD_SUBREAPER, 1)


def main(processes: Sequence[str]) -> int:
    """Supervise processes of the job whose folder contains this program.

    Parameters
    ----------
    processes : sequence of str
        Their names; first the one in whose window this program runs.

    Returns
    -------
    int
        As `NodeSupervisor.run` returns it.
    """
    folder = os.path.dirname(os.path.abspath(sys.argv[0]))
    return NodeSupervisor([os.path.join(folder, process) for process in processes]).run()

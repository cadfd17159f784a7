"""The supervisor of one process of the job: its parent on the node (compare tini and dumb-init).

It runs in a tmux window, without the standard library's site module, and does four things:

1. It starts the process, in a session of its own, with exactly the environment of its spec.
2. It is the subreaper (prctl(2), PR_SET_CHILD_SUBREAPER) of all descendants of the process. A descendant that
   double-forks or leaves its session becomes its child, and when the process has ended, nothing of it is left running.
3. It writes the start, the ranks, and the end (code, signal, time) to disk, atomically.
4. It ends the process so that its ranks can save (`torchfab.remote.job.graceful_end`), passes other signals on to the
   ranks, and shows the process's log files in its window. The process writes to those files itself, so
   neither a viewer nor the death of this supervisor can block it.

The process does not start before all nodes of the job are ready (see `torchfab.remote.job.start_barrier`).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time

from torchfab.remote import files, procfs, tmux
from torchfab.remote.job import child, hooks, leftovers, log_files, start_barrier
from torchfab.remote.job.child import Child
from torchfab.remote.job.console import Window
from torchfab.remote.job.containment import Containment
from torchfab.remote.job.graceful_end import GracefulEnd
from torchfab.remote.job.rank_tracker import RankTracker
from torchfab.remote.job.search import identify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_PR_SET_CHILD_SUBREAPER = 36
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# A rank may live for only a moment, so poll often until the first one appears, and briefly after each new one.
_STARTUP_S, _SETTLE_S = 30.0, 1.0
_SHORT_POLL_S, _LONG_POLL_S = 0.1, 0.4
# How long launchers may take to end after their ranks; less if the grace period is over before, but never less than the
# second number.
_LAUNCHERS_S, _LAUNCHERS_MIN_S = 10.0, 3.0
_CHAIN_TRIES = 1000
# How long processes may take to end after SIGKILL: one that waits for a broken disk or device never does.
_UNENDABLE_S = 10.0
# Poll interval at the start barrier, as a fallback: normally SIGCHLD or the server's pidfd wakes us. Other nodes may
# take minutes, and all supervisors wait meanwhile.
_BARRIER_POLL_S = 2.0


class ProcessSupervisor:
    """Supervise one process of the job, from its start until nothing of it is left.

    Parameters
    ----------
    folder : str
        The process's folder, which contains its spec.
    env : dict of str to str, optional
        The whole environment of the process. Default: that of the spec, with its secrets.
    """

    def __init__(self, folder: str, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.spec: dict[str, Any] = files.read_json(self._path(files.SPEC))
        self.env = env
        # Warning signals, sent to all processes directly: not forwarded, and ignored unless a process handles them.
        self.warning_signals = [signal.Signals[name] for name in self.spec.get("ignore", ())]
        self.warned: str | None = None
        self.child: Child | None = None
        self.child_env: dict[str, str] = {}  # kept for `--after`
        self.ranks = RankTracker(folder, 0)
        self.window = Window(folder, self.spec)
        self.timeline = log_files.Timeline(folder)
        self.begun = time.time()
        self.last_rank = 0.0  # when the newest rank was found
        self.oom_kills = procfs.oom_kills() or 0  # count at the start of this supervisor
        self.end_signal: str | None = None  # the first signal that requested the end
        self.kill_at: float | None = None
        self.ending = GracefulEnd(self.ranks.is_rank)
        self.end_requested = 0.0
        self.ranks_ended: float | None = None  # when the last rank ended after a requested end
        self.foreign: list[dict[str, Any]] = []  # processes of other users that cannot be ended
        self.killed: dict[int, str] = {}  # processes that had to be killed: pid -> description
        self.exited: float | None = None
        self.ended_clock: list[Any] | None = None
        self.cleared: dict[str, int] = {}  # what was left outside the job's folder
        self.containment = Containment(folder, self.spec.get("env") or env or {}, not self.spec.get("stop_by_file"))
        self.wakeup = _signals_to_pipe()

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def run(self) -> int:
        """Start the process, watch it until it ends, and clean up after it.

        Returns
        -------
        int
            Its exit code, as a shell reports it; 127 if it cannot be started, 1 if it was never released.
        """
        _become_subreaper()
        try:
            if not self._is_released():
                return 1
            self.child = self._start()
            self._write_started(self.child.pid)
        except OSError as error:
            where = "" if os.path.isdir(self.spec["cwd"]) else f" in {self.spec['cwd']}"
            self._clean_up()
            self._write_exit(None, error=f"cannot start {self.spec['argv'][0]}{where}: {error.strerror or error}")
            return 127
        self.ranks.root = self.child.pid
        files.reserve_space(self._path(files.EXIT), times=2)
        files.reserve_space(self._path(files.RANKS))
        return self._finish(self._watch(self.child))

    # ---- the start

    def _is_released(self) -> bool:
        """Wait at the start barrier; return whether the process may start."""
        job, held_by = os.path.dirname(self.folder), self.spec.get("held_by")
        if held_by:
            start_barrier.report_ready(self.folder)
        server_pidfds = start_barrier.open_server_pidfd(held_by)
        while (released := start_barrier.may_start(job, held_by)) is None and not self.end_signal:
            self._wait(_BARRIER_POLL_S if server_pidfds else self._pause_s(), server_pidfds)
        for pidfd in server_pidfds:
            os.close(pidfd)
        if released:
            return True
        self._secrets()  # removes the file: the process will not read it any more
        if not os.path.exists(os.path.join(job, files.STOP)):
            ended_by = f"asked to end ({self.end_signal})" if self.end_signal else ""
            self._write_exit(None, error=ended_by or start_barrier.NEVER_RELEASED)
        return False

    def _start(self) -> Child:
        env = {**self.spec["env"], **self._secrets()} if self.env is None else self.env
        log = os.open(self._path(files.OUTPUT), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self.child_env = env if self.spec.get("after") else {}
            with self.containment:
                return child.start(self.spec["argv"], env, self.spec["cwd"], log, self._before_exec)
        finally:
            os.close(log)

    def _before_exec(self) -> None:
        child.end_with_parent()
        for number in self.warning_signals:
            signal.signal(number, signal.SIG_IGN)

    def _secrets(self) -> dict[str, str]:
        path = self._path(files.SECRETS)
        secrets = files.read_json(path) or {}
        try:
            os.unlink(path)
        except FileNotFoundError:  # it has none, or a stop has just removed them
            pass
        return dict(secrets)

    def _write_started(self, pid: int) -> None:
        own_pid = os.getpid()
        record = {
            "pid": pid,
            "start_time": procfs.start_time(pid),
            "supervisor_pid": own_pid,
            "supervisor_start_time": procfs.start_time(own_pid),
            "boot_id": procfs.boot_id(),
            "time": time.time(),
        }
        files.write_json(self._path(files.STARTED), record)

    # ---- the watch

    def _watch(self, child: Child) -> int:
        while (code := child.poll()) is None:
            self._wait(self._pause_s(), self.ranks.pidfds)
            self._after_wait(child)
        self.exited, self.ended_clock = time.time(), procfs.clock()
        self.ranks.set_code(child.pid, code)
        return code

    def _wait(self, pause_s: float, pidfds: Iterable[int]) -> None:
        poll = select.poll()
        for fd in (self.wakeup, *pidfds):
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(1000 * pause_s):
            if fd == self.wakeup:
                self._on_signals(os.read(self.wakeup, 4096))
            elif fd in self.ranks.pidfds:
                self.ranks.on_pidfd(fd)

    def _pause_s(self) -> float:
        now = time.time()
        if self.end_signal:
            return _SHORT_POLL_S
        settled = now - self.last_rank > _SETTLE_S if self.last_rank else now - self.begun > _STARTUP_S
        return _LONG_POLL_S if settled else _SHORT_POLL_S

    def _after_wait(self, child: Child) -> None:
        if self.ranks.find_new():
            self.last_rank = time.time()
        self.ranks.sweep()
        self._reap_adopted(child.pid)
        logs = log_files.find(self.folder, self.spec)
        self.timeline.record(logs, time.time())
        self.window.show(logs, self.ranks.ranks)
        self._advance_end()
        if self.kill_at is not None and time.time() > self.kill_at:
            self._kill(procfs.descendants([os.getpid()]))

    def _reap_adopted(self, excluded_pid: int) -> None:
        # Zombies of adopted processes. The child itself is reaped by `Child`, which needs its exit code.
        for pid in procfs.children(os.getpid()):
            if pid != excluded_pid:
                _reap(pid)

    # ---- signals

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGHUP and self._tmux_is_gone():
                continue
            if number in _FORWARDED:
                self._forward(signal.Signals(number))

    def _tmux_is_gone(self) -> bool:
        # A server that closes a window on request is still running when SIGHUP arrives, even if it was its last window.
        # A server that is gone was killed: the training then continues without a window. The kernel sends SIGHUP a
        # little before the killed server disappears, hence the wait.
        deadline = time.monotonic() + 0.2
        while tmux.server_is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _forward(self, number: signal.Signals) -> None:
        if number in self.warning_signals:
            self.warned = number.name
            return
        if number in _ENDING:
            self._request_end(number)
        elif self.child and self.child.returncode is None:
            # A launcher would be ended by a signal that its ranks handle.
            _signal_all(self.ranks.running() or [self.child.pid], number)

    def _request_end(self, number: signal.Signals) -> None:
        kill_at = time.time() + self._grace_s()
        if self.end_signal is None:
            self.end_signal, self.end_requested = number.name, time.time()
            self.ending.number = number
            self.kill_at = kill_at
        elif self.ranks_ended is None:  # the latest request may have less patience
            self.kill_at = min(kill_at, self.kill_at or kill_at)
        self._advance_end()

    def _advance_end(self) -> None:
        """Signal the ranks, then, once all have ended, their launcher."""
        if self.end_signal is None and self.spec.get("stop_by_file") and self._is_stop_requested():
            self._request_end(signal.SIGTERM)
        if self.end_signal is None or self.child is None or self.child.returncode is not None:
            return
        may_end = self._may_launchers_end()
        had_ranks = bool(self.ending.hold.traced or self.ending.hold.stopped)
        if self.ending.advance([self.child.pid], may_end):
            return
        now = time.time()
        if self.ranks_ended is None:
            self.ranks_ended = now
            _touch(self._path(files.RANKS_ENDED))
            if not may_end and self.kill_at is not None:
                self.kill_at += _LAUNCHERS_MIN_S  # ranks of other nodes may use their whole grace period
        if had_ranks and may_end and self.kill_at is not None:
            self.kill_at = now + min(_LAUNCHERS_S, max(_LAUNCHERS_MIN_S, self.kill_at - now))

    def _is_stop_requested(self) -> bool:
        return os.path.exists(os.path.join(os.path.dirname(self.folder), files.STOP))

    def _may_launchers_end(self) -> bool:
        """Return whether launchers may end: not while a stop waits for ranks of other nodes, which may need them."""
        stop = files.read_json(os.path.join(os.path.dirname(self.folder), files.STOP)) or {}
        return not stop.get("ranks_first")

    def _grace_s(self) -> float:
        stop = files.read_json(os.path.join(os.path.dirname(self.folder), files.STOP)) or {}
        return float(stop.get("grace_s", self.spec["grace_s"]))

    # ---- the end

    def _finish(self, code: int) -> int:
        # Written first, in case this supervisor is killed during the clean-up.
        self._write_exit(code, cleaning=True)
        left = self._clean_up()
        self._run_after()
        self.containment.close()
        self.cleared = leftovers.clear(os.path.dirname(self.folder))
        self.ranks.complete(self._path(files.OUTPUT), self.exited or time.time())
        logs = log_files.find(self.folder, self.spec)
        self.timeline.record(logs, time.time(), force=True)
        self.window.show(logs, self.ranks.ranks)
        self._write_exit(code, left=left)
        files.release_space(self._path(files.EXIT))
        files.release_space(self._path(files.RANKS))
        return code if code >= 0 else 128 - code

    def _clean_up(self) -> list[str]:
        """End all remaining descendants: TERM, the grace period, KILL; return their descriptions."""
        if _has_no_children() and not self.containment.members():
            return []
        left = [procfs.describe(pid) for pid in self._remaining()]
        self.ending.number = signal.SIGTERM
        self._await_descendants(min(time.time() + self._grace_s(), self.kill_at or float("inf")))
        return left

    def _run_after(self) -> None:
        """Run `--after` if this is the last process of the job on this node."""
        if not self.child_env or not hooks.is_last(self.folder):
            return
        log = self._path(files.AFTER_LOG)
        env = {**self.child_env, hooks.EXIT_CODE: str(hooks.exit_code(os.path.dirname(self.folder)))}
        limit = time.time() + self.spec["after_timeout_s"]
        try:
            with self.containment:
                process = hooks.start(self.spec["after"], self.spec["cwd"], env, log)
            problem = hooks.await_end(process, lambda: self._awaits_after(limit))
        except OSError as error:
            problem = f"it cannot be started: {error.strerror or error}"
        if problem:
            hooks.note(log, f"--after: {problem}")
        self._await_descendants(time.time())

    def _awaits_after(self, limit: float) -> bool:
        """Wait for a moment; return whether `--after` may go on."""
        self._wait(_SHORT_POLL_S, ())
        return time.time() < (min(limit, self.end_requested + hooks.STOPPED_S) if self.end_signal else limit)

    def _remaining(self) -> list[int]:
        """Return what is left of the process: also children that /proc does not show (hidepid)."""
        own_pid = os.getpid()
        found = [*procfs.descendants([own_pid]), *self.containment.members()]
        found += [pid for pid in procfs.children(own_pid) if procfs.is_foreign(pid)]
        return list(dict.fromkeys(found))

    def _await_descendants(self, deadline: float) -> None:
        """Wait until this process has no descendants; kill them after the deadline; note those that cannot be ended."""
        own_pid = os.getpid()
        while not _has_no_children() or self.containment.members():
            # Topmost processes first: what is below them are their helpers, which become topmost when they have ended.
            self.ending.advance(pid for pid in procfs.children(own_pid) if procfs.is_running(pid))
            time.sleep(0.02)
            self._reap_adopted(0)
            if time.time() > deadline:
                remaining = self._remaining()
                self._kill([pid for pid in remaining if not procfs.is_foreign(pid)])
                self.containment.kill()
                self._kill_chain()
                is_late = time.time() > deadline + _UNENDABLE_S
                if remaining and (is_late or self._are_foreign(remaining)):
                    self.foreign = [identify(pid) for pid in remaining]  # sudo, or a broken disk: only reported
                    return

    def _are_foreign(self, pids: list[int]) -> bool:
        return all(map(procfs.is_foreign, pids)) and not self.containment.members()

    def _kill(self, pids: list[int]) -> None:
        for pid in pids:
            self.killed.setdefault(pid, procfs.describe(pid))
        _signal_all(pids, signal.SIGKILL)
        self.ending.hold.release()

    def _kill_chain(self) -> None:
        """Kill processes that fork and exit faster than a search of /proc takes: each becomes a child of this one."""
        before: list[int] = []
        for _ in range(_CHAIN_TRIES):
            pids = [pid for pid in procfs.children(os.getpid()) if not procfs.is_foreign(pid)]
            if not pids or pids == before:
                break
            _signal_all(pids, signal.SIGKILL)
            for pid in pids:
                _reap(pid)
            before = pids

    def _rank_ends(self) -> dict[str, Any]:
        """Return how ranks ended after a requested end: by themselves or killed, and how long the former took."""
        ranks = [rank for rank in self.ranks.ranks if (rank["pid"], rank["start_time"]) in self.ending.signaled]
        killed = [rank for rank in ranks if rank["pid"] in self.killed]
        ended = [rank["ended"] for rank in ranks if rank not in killed and rank["ended"]]
        seconds = max(0.0, max(ended, default=self.end_requested) - self.end_requested)
        return {"ended": len(ranks) - len(killed), "killed": len(killed), "seconds": seconds}

    def _write_exit(self, code: int | None, **more: Any) -> None:
        signal_name = signal.Signals(-code).name if code is not None and code < 0 else None
        record: dict[str, Any] = {
            "code": code,
            "signal": signal_name,
            "time": self.exited or time.time(),
            "asked": self.end_signal,
            "warned": self.warned,
        }
        if kills := (procfs.oom_kills() or 0) - self.oom_kills:
            record["oom_kills"] = kills
        if self.end_signal:
            record["rank_ends"] = self._rank_ends()
        if self.ended_clock:
            record["clock"] = self.ended_clock
        if any(self.cleared.values()):
            record["cleared"] = self.cleared
        if self.foreign:
            record["foreign"] = self.foreign
        record.update(killed=list(self.killed.values()), **more)
        try:
            files.write_json(self._path(files.EXIT), record)
        except OSError as error:  # a full disk: only the window and the exit code can still report it
            print(f"torchfab: cannot write {self._path(files.EXIT)}: {error}", file=sys.stderr)


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
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:  # gone meanwhile
            pass


def _touch(path: str) -> None:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError:  # a full disk: a stop then waits for the end of the launcher
        pass


def _has_no_children() -> bool:
    """Return whether this process has no descendants left: a subreaper is the parent of all orphans below it.

    waitpid answers this without a scan over every process of the machine.
    """
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return False
    except ChildProcessError:
        return True


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def main(process: str) -> int:
    """Supervise one process of the job whose folder contains this program.

    Parameters
    ----------
    process : str
        Name of the process.

    Returns
    -------
    int
        Its exit code.
    """
    folder = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), process)
    return ProcessSupervisor(folder).run()

"""Supervision of one process of the job on a node: start, ranks, logs, end, and clean-up.

The supervisor calls the methods of all its watches in turn; no method blocks.
"""

from __future__ import annotations

import os
import time

from torchfab.remote import child_process, job_files, light_stdlib, procfs
from torchfab.remote.job import exit_record, leftovers, log_files
from torchfab.remote.job.clean_up import CleanUp, signal_all
from torchfab.remote.job.containment import Containment
from torchfab.remote.job.end_request import EndRequest
from torchfab.remote.job.peer_end import PeerEnd
from torchfab.remote.job.rank_tracker import RankTracker
from torchfab.remote.job.window_output import Window
from torchfab.remote.light_stdlib import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from torchfab.remote.job.after_hook import AfterHook

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# A rank may live for only a moment, so poll often until the first one appears, and briefly after each new one.
_STARTUP_S, _SETTLE_S = 30.0, 1.0
_SHORT_POLL_S, _LONG_POLL_S = 0.1, 0.4
_CLEAN_UP_POLL_S = 0.02


class ProcessWatch:
    """Watch one process of the job, from its start until no process of it is left.

    Parameters
    ----------
    folder : str
        The process's folder, which contains its spec.
    number : int
        A different one for each process of the job on this node; 0 for the one in whose window the supervisor runs.
    env : dict of str to str, optional
        The whole environment of the process. Default: that of the spec, with its secrets.

    Attributes
    ----------
    code : int or None
        The exit code of the process, as a shell reports it, once no process of it is left; 127 if it cannot be started,
        1 if it was never released. None before.
    """

    def __init__(self, folder: str, number: int = 0, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.spec: dict[str, Any] = job_files.read_json(self.path(job_files.SPEC))
        self.env = env
        # Warning signals that all processes get directly: not forwarded, and ignored unless a process handles them.
        self.warning_signals = [getattr(signal, name) for name in self.spec.get("ignore", ())]
        self.warned: str | None = None
        self.child: child_process.Child | None = None
        self.child_env: dict[str, str] = {}  # kept for `--after`
        self.after: AfterHook | None = None
        self.ranks = RankTracker(folder, 0)
        self.window = Window(folder, self.spec, is_own=number == 0)
        self.timeline = log_files.Timeline(folder)
        self.begun = time.time()
        self.last_rank = 0.0  # when the newest rank was found
        self.oom_kills = procfs.oom_kills() or 0  # count at the start of the supervisor
        self.request = EndRequest(folder, self.spec, self.ranks)
        self.peer_end = PeerEnd(self.spec, self.ranks, self.request.ending)
        env_of_mark = self.spec.get("env") or env or {}
        self.containment = Containment(folder, env_of_mark, number, not self.spec.get("stop_by_file"))
        self.clean_up = CleanUp(self._find_children, self.request.ending, self.containment)
        self.siblings: list[ProcessWatch] = []  # the other processes of the supervisor
        self.error = ""  # why the process could not be started
        self.ended: tuple[float, list[Any]] | None = None  # time and clock of the end of the process
        self.is_cleaning = False
        self.errors: set[str] = set()  # of the supervisor itself
        self.code: int | None = None

    def path(self, name: str) -> str:
        """Return the path of a file in the process's folder.

        Parameters
        ----------
        name : str
            Name of the file.

        Returns
        -------
        str
        """
        return os.path.join(self.folder, name)

    # ---- the start

    def refuse(self, reason: str) -> None:
        """Give up before the start.

        Parameters
        ----------
        reason : str
            Written into the record of the end; empty: write no record.
        """
        self._take_secrets()  # removes the file, because the process will not read it any more
        self.error, self.code = reason, 1
        if reason:
            self._write_exit()
        self.window.close()

    def start(self) -> None:
        """Start the process; if that fails, write the reason into the record of its end."""
        try:
            self.child = self._start()
        except OSError as error:
            self._fail(error)
            return
        self.ranks.root = self.child.pid

    def _start(self) -> child_process.Child:
        env = {**self.spec["env"], **self._take_secrets()} if self.env is None else self.env
        log = os.open(self.path(job_files.OUTPUT), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self.child_env = env if self.spec.get("after") else {}
            with self.containment:
                return child_process.start(self.spec["argv"], env, self.spec["cwd"], log, self._before_exec)
        finally:
            os.close(log)

    def _before_exec(self) -> None:
        child_process.end_with_parent()
        for number in self.warning_signals:
            signal.signal(number, signal.SIG_IGN)

    def _fail(self, error: OSError) -> None:
        where = "" if os.path.isdir(self.spec["cwd"]) else f" in {self.spec['cwd']}"
        self.error = f"cannot start {self.spec['argv'][0]}{where}: {error.strerror or error}"
        self._begin_clean_up()

    def _take_secrets(self) -> dict[str, str]:
        path = self.path(job_files.SECRETS)
        secrets = job_files.read_json(path) or {}
        try:
            os.unlink(path)
        except FileNotFoundError:  # it has none, or a stop has just removed them
            pass
        return dict(secrets)

    def record_start(self) -> None:
        """Write the record of the start, if the process has started."""
        if self.child is None:
            return
        try:
            self._write_started(self.child.pid)
        except OSError as error:
            self._fail(error)
            return
        job_files.reserve_space(self.path(job_files.EXIT), times=2)
        job_files.reserve_space(self.path(job_files.RANKS))

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
        job_files.write_json(self.path(job_files.STARTED), record)

    # ---- the watch

    def pause_s(self) -> float:
        """Return how long the supervisor may wait for an event of the kernel.

        Returns
        -------
        float
            Seconds.
        """
        if self.is_cleaning:
            return _CLEAN_UP_POLL_S
        if self.request.signal or self.peer_end.kill_at is not None:
            return _SHORT_POLL_S
        now = time.time()
        settled = now - self.last_rank > _SETTLE_S if self.last_rank else now - self.begun > _STARTUP_S
        return _LONG_POLL_S if settled else _SHORT_POLL_S

    def poll(self) -> None:
        """Find new ranks, and record the ends of ranks and the growth of logs."""
        if self.child is not None and self.child.returncode is None:
            if self.ranks.find_new():
                self.last_rank = time.time()
                self.peer_end.watch(self.child.pid)
            self.peer_end.check_ranks(self.child.pid)
        if not self.is_cleaning:  # ranks that are ended by the clean-up have not failed
            self.ranks.sweep()
        logs = log_files.find(self.folder, self.spec)
        self.timeline.record(logs, time.time())
        self.window.show(logs, self.ranks.ranks)

    def on_reaped(self, pid: int, code: int) -> None:
        """Record the exit code of a process that the supervisor has reaped, if it is this process or one of its ranks.

        Parameters
        ----------
        pid : int
            The process.
        code : int
            Its exit code, negative for a signal.
        """
        self.request.ending.hold.forget(pid)
        if not self.is_cleaning:
            self.ranks.set_code(pid, code)
        if self.child is not None and pid == self.child.pid and self.child.returncode is None:
            self.child.returncode = code
            self.ended = time.time(), procfs.clock()
        if self.after is not None and self.after.child is not None and pid == self.after.child.pid:
            self.after.child.returncode = code

    def on_stopped(self, pid: int, status: int) -> None:
        """Decide whether a launcher of this process that has stopped under ptrace may continue.

        Parameters
        ----------
        pid : int
            A process.
        status : int
            The status that waitpid returned for it.
        """
        try:
            self.peer_end.on_stopped(self.child.pid if self.child is not None else 0, pid, status)
        except Exception as error:  # a bug in torchfab must not leave a launcher stopped
            self.report_error(error)
            self.request.ending.hold.let_pass(pid)

    def advance(self) -> None:
        """Continue a requested end, or the clean-up after the end."""
        if self.ranks.below_shims:
            self.request.ending.assume_signaled(self.ranks.orphans())
        if self.is_cleaning:
            if not self._runs_after() and self.clean_up.advance() and not self._starts_after():
                self._finish()
        elif self.child is not None and self.child.returncode is None:
            self.request.advance(self.child.pid)
            if self.request.signal is None:
                self._end_peers(self.child.pid)
            elif self.request.is_overdue():
                remaining = self.clean_up.remaining()
                self.request.ending.note_unfinished(remaining, os.path.dirname(self.folder))
                self.clean_up.kill(remaining)
        else:
            self._begin_clean_up()

    def _end_peers(self, top: int) -> None:
        if overdue := self.peer_end.advance(top):
            self.request.ending.note_unfinished(overdue, os.path.dirname(self.folder))
            self.clean_up.kill([*overdue, *procfs.descendants(overdue)], may_continue=False)

    # ---- signals

    def on_signal(self, number: int) -> None:
        """End the process, or pass the signal on to its ranks.

        Parameters
        ----------
        number : int
            A signal that the supervisor got, or SIGHUP when the process's window was closed.
        """
        if number in self.warning_signals:
            self.warned = light_stdlib.signal_name(number)
        elif self.is_cleaning or self.code is not None:
            if number in ENDING:
                self._hasten()
        elif number in ENDING:
            self.request.request(number)
            if self.child is not None:
                self.advance()
        elif self.child is not None:
            # Ranks handle this signal, but it would end a launcher.
            signal_all(self.ranks.running() or [self.child.pid], number)

    def _hasten(self) -> None:
        if self.after is not None:
            self.after.on_stop()
        else:
            self.clean_up.deadline = min(self.clean_up.deadline, time.monotonic() + self.request.grace_s())

    def report_error(self, error: Exception) -> None:
        """Write an unexpected error of the supervisor into a file in the process's folder, each type once.

        Parameters
        ----------
        error : Exception
            The error.
        """
        import traceback  # imported here: normally there is none

        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        if text not in self.errors:
            self.errors.add(text)
            try:
                with open(self.path(job_files.ERRORS), "a", encoding="utf-8", errors="surrogateescape") as file:
                    file.write(text)
            except OSError:
                pass

    # ---- the end

    def _begin_clean_up(self) -> None:
        self.is_cleaning = True
        now = time.monotonic()
        self.clean_up.begin(min(now + self.request.grace_s(), self.request.kill_at or float("inf")))
        if self.clean_up.left and not self.error:
            # Written before the clean-up, in case the supervisor is killed during it.
            self._write_exit(is_cleaning=True)
        self.advance()

    def _starts_after(self) -> bool:
        """Start `--after`, if this process is the last one of the node; return whether it was started."""
        is_last = all(each.code is not None for each in self.siblings)
        if self.after is not None or not self.child_env or self.error or not is_last:
            return False
        from torchfab.remote.job.after_hook import AfterHook  # imported here: few jobs have one

        self._write_exit(is_cleaning=True)
        self.after = AfterHook(self.folder, self.spec, self.child_env)
        if self.request.signal:
            self.after.on_stop()
        self.after.start(self.containment)
        return True

    def _runs_after(self) -> bool:
        """Return whether `--after` runs; when it has ended, kill the processes that it left."""
        if self.after is None or not self.child_env:
            return False
        if self.after.has_ended():
            self.child_env = {}
            self.clean_up.deadline = time.monotonic()
        return bool(self.child_env)

    def _find_children(self) -> list[int]:
        """Return the children of the supervisor that descend from this process."""
        children = procfs.children(os.getpid())
        others = [each for each in self.siblings if each.code is None]
        if not others:  # the last one also ends processes that cannot be attributed
            return children
        processes = [each.child.pid for each in others if each.child is not None]
        return [pid for pid in children if pid not in processes and self._owns(pid)]

    def _owns(self, pid: int) -> bool:
        own_pid = self.child.pid if self.child is not None else 0
        return pid == own_pid or self.containment.holds(pid) or _session_of(pid) == own_pid

    def _finish(self) -> None:
        returncode = self.child.returncode if self.child is not None else None
        self.containment.close()
        cleared = self._clear_leftovers()
        if not self.error:
            has_failed = bool(returncode) and self.spec.get("rank") is None
            self.ranks.complete(self.path(job_files.OUTPUT), self.ended[0] if self.ended else time.time(), has_failed)
        self._show_rest()
        self._write_exit(cleared=cleared)
        for name in (job_files.EXIT, job_files.RANKS):
            job_files.release_space(self.path(name))
        if any(each.code is None for each in self.siblings):
            self.window.write(f"torchfab: {os.path.basename(self.folder)} has ended\n".encode())
        self.window.close()
        self.ranks.close()
        self.code = 127 if self.error or returncode is None else returncode if returncode >= 0 else 128 - returncode

    def _clear_leftovers(self) -> dict[str, int]:
        if any(each.code is None and each.ended for each in self.siblings):
            return {}  # the last process to end clears for all
        return leftovers.clear(os.path.dirname(self.folder))

    def _show_rest(self) -> None:
        logs = log_files.find(self.folder, self.spec)
        self.timeline.record(logs, time.time(), force=True)
        self.window.show(logs, self.ranks.ranks)

    def _write_exit(self, **more: Any) -> None:
        record = exit_record.compose(self, **more)
        try:
            job_files.write_json(self.path(job_files.EXIT), record)
        except OSError as error:  # a full disk: only the window and the exit code can still report it
            self.window.write(f"torchfab: cannot write {self.path(job_files.EXIT)}: {error}\n".encode())


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:  # it has ended
        return -1

"""A launched job in a Python program, with `fab status`, `logs`, `wait`, `why` and `stop` as methods."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from torchfab.api import boundary
from torchfab.api.boundary import quiet
from torchfab.api.results import JobInfo, LogLine, Status, Stopped, Why
from torchfab.cli import project_settings
from torchfab.cli.executor import CommandLine, check_hosts_flag
from torchfab.core.errors import JobFailedError, TorchfabError, UsageError, WaitTimeoutError
from torchfab.core.log_lines import Line
from torchfab.launching import job_lookup
from torchfab.launching.context import CommandContext, make_context
from torchfab.monitoring.first_failure import with_first_failure
from torchfab.monitoring.job_diagnosis import diagnose_job
from torchfab.monitoring.job_status import ask_status, end_message
from torchfab.monitoring.job_watcher import NO_LOG_LINES, JobWatcher, Printer
from torchfab.monitoring.log_request import check_ranks, log_request
from torchfab.records import Record, launch_request
from torchfab.supervise.follower import JobFollower
from torchfab.supervise.stopping import stop_job

StrPath = str | os.PathLike[str]


def open_context(
    project: StrPath | None = None,
    script: tuple[str, ...] | None = None,
    hosts: str = "",
    ssh_config: StrPath = "",
    identities: Sequence[StrPath] = (),
    connect_timeout_s: float | None = None,
) -> CommandContext:
    """Read settings and records as a command does in the current folder.

    Parameters
    ----------
    project : path, optional
        A folder of the project. Default: the current one, or the nearest above it with settings.
    script : tuple of str, optional
        The arguments after `--` on the command line. Default: none.
    hosts : str
        The value of `-H`. Default: the hosts file.
    ssh_config : path
        An ssh config file (`-S`). Default: the user's and the system's.
    identities : sequence of path
        Private keys (`-i`). Default: none.
    connect_timeout_s : float, optional
        Time limit for each step of a connection, in seconds (`-t`). Default: the setting.

    Returns
    -------
    CommandContext

    Raises
    ------
    UsageError
        A setting is not valid, or there is no such folder.
    """
    start = Path(project or ".").expanduser().absolute()
    if not start.is_dir():
        raise UsageError(f"project: there is no folder {start}", "name a project's folder, or leave it out")
    keys = [os.fspath(path) for path in identities]
    config, folder = project_settings.load(start, os.fspath(ssh_config), keys, connect_timeout_s)
    return make_context(config, CommandLine(script, check_hosts_flag(hosts) if hosts else "", folder))


class Job:
    """A job that was launched from here, by this program or by any other command.

    All methods may be called from any thread, also while an event loop runs. They print nothing: messages that a
    command would print are logged by the logger `torchfab` at level INFO. Ctrl-C in a method does not affect the job.

    Used as a context manager, the job is stopped at the end of the block if it has not ended.

    Attributes
    ----------
    name : str
        Its name, as in `fab status NAME`.
    job_id : str
        The id that all its processes carry as TORCHFAB_JOB_ID.
    """

    def __init__(self, record: Record, ctx: CommandContext) -> None:
        self._record, self._ctx = record, ctx
        self.name, self.job_id = record.name, record.job_id

    def __repr__(self) -> str:
        hosts = ", ".join(self.hosts[:4]) + (", …" if len(self.hosts) > 4 else "")
        return f"<torchfab job {self.name}: {self._record.launcher}, {self.world_size} ranks on {hosts}>"

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.status().ended:
            self.stop()

    @property
    def hosts(self) -> tuple[str, ...]:
        """Its nodes; empty while a scheduler has not allocated any."""
        return tuple(node.label for node in self._record.nodes)

    @property
    def world_size(self) -> int:
        """Number of ranks that the launch planned."""
        return self._record.world_size

    @property
    def info(self) -> JobInfo:
        """The content of its record; no node is asked."""
        return JobInfo.of(self._refreshed())

    def _refreshed(self) -> Record:
        """Return the record of the current attempt: a supervisor may have launched the job again."""
        return job_lookup.with_current_settings(self._ctx.records.get(self.name), self._ctx)

    def status(self) -> Status:
        """Ask all nodes for the state of the job.

        Returns
        -------
        Status
            A node that does not answer is `unreachable` in it.
        """
        with quiet():
            record = self._refreshed()
            return Status.of(self.name, with_first_failure(record, ask_status(record)))

    def logs(
        self,
        follow: bool = False,
        rank: int | str | Sequence[int] | None = None,
        lines: int | None = 1000,
        grep: str = "",
    ) -> Iterator[LogLine]:
        """Yield the lines of all ranks, those of the past merged by time.

        Parameters
        ----------
        follow : bool
            Continue until the job has ended, through all restarts. Default False: only existing lines.
        rank : int, str or sequence of int, optional
            Only these ranks: 3, `"0-3,7"`, `[0, 1]`. Default: all, and processes that are not ranks.
        lines : int, optional
            Only the last lines of each file; None: all. Default 1000.
        grep : str
            Only lines that match this regular expression.

        Yields
        ------
        LogLine

        Raises
        ------
        UsageError
            The job has no such rank, or `grep` is not a regular expression.
        """
        with quiet():
            record = self._refreshed()
            request = log_request(_rank_flag(rank), "all" if lines is None else lines, grep, follow)
            check_ranks(request["ranks"] or (), record)
        return boundary.iterate(_log_lines(record, request))

    def wait(self, timeout: float | None = None, check: bool = False) -> Status:
        """Wait for the job to end, through all restarts.

        As with `fab wait`, nodes that continue after a failure are stopped after `failure_grace_s` seconds.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait. Default: no limit.
        check : bool
            Raise if the job does not succeed. Default False.

        Returns
        -------
        Status
            The status at the end.

        Raises
        ------
        WaitTimeoutError
            It has not ended in time; it continues.
        JobFailedError
            With `check`: it ended without success.
        """
        with quiet():
            follower = self._follow_to_end(timeout)
            found = follower.final_status()
            if check and found.exit_code != 0:
                raise JobFailedError(end_message(follower.record, found), found.exit_code or 1)
            return Status.of(self.name, found)

    def _follow_to_end(self, timeout: float | None) -> JobFollower:
        """Follow the job until it has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        grace_s, stall_s = float(self._ctx.config["failure_grace_s"]), float(self._ctx.config["stall_s"])
        follower = JobFollower(JobWatcher(self._refreshed(), Printer(), grace_s, stall_s=stall_s))
        with closing(follower.steps(NO_LOG_LINES)) as steps:
            for _ in steps:
                if deadline is not None and time.monotonic() > deadline:
                    problem = f"job {self.name} has not ended within {timeout:g} s; it continues"
                    raise WaitTimeoutError(problem, f"fab status {self.name}")
        return follower

    def results(self, timeout: float | None = None) -> tuple[Any, ...]:
        """Wait for the job to end, and return the values that its function returned on all ranks.

        The results are unpickled, which can run code. Only this user and root can write into the job's folder on a
        node.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait. Default: no limit.

        Returns
        -------
        tuple of Any
            By rank.

        Raises
        ------
        FunctionError
            The function raised an exception, on the rank that failed first.
        JobFailedError
            The job failed otherwise: a rank was killed, a node was lost.
        UsageError
            The job runs a script or a program, not a function.
        WaitTimeoutError
            It has not ended in time; it continues.
        """
        from torchfab.api import function_calls

        with quiet():
            request = launch_request.load(self._refreshed().folder, os.environ)
            if not request.job.files:
                raise UsageError(f"job {self.name} runs {' '.join(request.job.script[:2])}, which returns no results")
            follower = self._follow_to_end(timeout)
            found = follower.final_status()
            return function_calls.results(follower.record, found, end_message(follower.record, found))

    def why(self) -> Why:
        """Ask all nodes why the job ended: the first failure with host and traceback, and the failures after it.

        Returns
        -------
        Why
            `print(job.why())` prints the report of `fab why`.
        """
        with quiet():
            return Why.of(diagnose_job(self._refreshed()))

    def stop(self, grace: float | None = None) -> Stopped:
        """Stop the job on all its nodes, and verify that no process of it is left.

        Parameters
        ----------
        grace : float, optional
            Seconds between SIGTERM and SIGKILL. Default: as launched.

        Returns
        -------
        Stopped

        Raises
        ------
        HostsFailedError
            Nodes are unreachable.
        TorchfabError
            Processes are left that could not be ended.
        """
        with quiet():
            outcome = stop_job(self._refreshed(), grace)
            if error := outcome.unreachable:
                error.fix = f"when they are reachable again: fab stop {self.name}"
                raise error
            if outcome.status is None or not outcome.is_complete:
                raise TorchfabError(
                    f"job {self.name}: not all of its processes could be ended: {'; '.join(outcome.left_processes)}",
                    f"end them as their user or as root, then: fab stop {self.name}",
                )
            return Stopped.of(outcome, outcome.status)

    def signal(self, name: str = "USR1", rank: int | str | Sequence[int] | None = None) -> tuple[int, ...]:
        """Send a signal as a notice, once to each rank.

        Parameters
        ----------
        name : str
            `USR1`, `USR2`, `HUP`, `CONT`, `URG` or `WINCH`. Default `USR1`.
        rank : int, str or sequence of int, optional
            Only these ranks. Default: all.

        Returns
        -------
        tuple of int
            The ranks that got it.

        Raises
        ------
        UsageError
            The signal would end a rank, or the job does not run. Nothing was sent.
        """
        from torchfab.api import actions

        with quiet():
            return actions.signal(self._refreshed(), name, _rank_flag(rank))

    def checkpoint(
        self, signal: str = "USR1", folders: StrPath | Sequence[StrPath] = (), timeout: float = 300.0
    ) -> tuple[str, ...]:
        """Ask the job to save a checkpoint without ending, and wait until the checkpoint is complete.

        Parameters
        ----------
        signal : str
            The signal that the script handles by saving. Default `USR1`.
        folders : path or sequence of path
            Folders of its checkpoints. Default: those that its arguments name, otherwise the usual ones.
        timeout : float
            Seconds to wait. Default 300.

        Returns
        -------
        tuple of str
            The files of the checkpoint, as paths on the nodes.

        Raises
        ------
        UsageError
            A rank does not handle the signal, or the job does not run.
        TorchfabError
            No checkpoint was complete in time.
        """
        from torchfab.api import actions

        given = (folders,) if isinstance(folders, str | os.PathLike) else folders
        with quiet():
            return actions.checkpoint(self._refreshed(), signal, tuple(os.fspath(each) for each in given), timeout)

    def pull(self, *paths: StrPath, to: StrPath = "", rank: int | str | Sequence[int] | None = None) -> Path:
        """Copy files of the job from the nodes that have them; the same call resumes an interrupted copy.

        Parameters
        ----------
        *paths : path
            Files, folders and patterns on the nodes, relative to the job's working directory.
        to : path
            The folder here. Default: `pulled/<job>`.
        rank : int, str or sequence of int, optional
            Only from the nodes of these ranks. Default: from all.

        Returns
        -------
        Path
            The folder here.

        Raises
        ------
        UsageError
            No node has such a file.
        HostsFailedError
            Nodes failed; the files of the others were copied.
        """
        from torchfab.api import actions

        with quiet():
            return actions.pull(
                self._refreshed(), tuple(os.fspath(each) for each in paths), os.fspath(to), _rank_flag(rank), self._ctx
            )

    @contextmanager
    def forward(self, port: int | str = "tensorboard", host: str = "") -> Iterator[str]:
        """Forward a port of a node to 127.0.0.1 of this machine for the duration of a block.

        Parameters
        ----------
        port : int or str
            A port of the node, `"LOCAL:PORT"`, or `"tensorboard"`, which is the default.
        host : str
            Host or node rank of the node. Default: the first node, or the one on which tensorboard runs.

        Yields
        ------
        str
            The URL.
        """
        from torchfab.api import actions

        with quiet(), actions.forward(self._refreshed(), str(port), host, self._ctx) as url:
            yield url

    def supervise(
        self,
        restarts: int | None = None,
        stall: float | None = None,
        backoff: float | None = None,
        notify: str = "",
    ) -> None:
        """Start a supervisor in tmux, which restarts the job after failures, hangs and lost nodes, and return.

        Parameters
        ----------
        restarts : int, optional
            Number of restarts without progress. Default: as launched, or the setting.
        stall : float, optional
            Seconds of silence that count as a hang; 0: never. Default: as launched, or the setting.
        backoff : float, optional
            Seconds before the first restart. Default: as launched, or the setting.
        notify : str
            A command or URL that is called on events. Default: as launched.

        Raises
        ------
        UsageError
            The job is supervised already, or has succeeded or was stopped.
        """
        from torchfab.api import actions
        from torchfab.commands.supervise import SuperviseFlags

        with quiet():
            actions.supervise(self._refreshed(), SuperviseFlags(restarts, stall, backoff, notify), self._ctx)

    def remove(self) -> None:
        """Remove the record and the logs of the job, which must have ended.

        Raises
        ------
        UsageError
            It has not ended, or is supervised.
        HostsFailedError
            A folder of a node could not be removed; the record is kept.
        """
        from torchfab.commands.jobs import remove_record

        with quiet():
            remove_record(self.name, self._ctx)


def _rank_flag(rank: int | str | Sequence[int] | None) -> str:
    """Return ranks as the value of `--rank`."""
    if rank is None or isinstance(rank, str):
        return rank or ""
    return ",".join(map(str, [rank] if isinstance(rank, int) else rank))


class _Collector(Printer):
    """Collect log lines instead of printing them."""

    def __init__(self) -> None:
        super().__init__(folding=False)
        self.lines: list[Line] = []

    def write(self, lines: Sequence[Line]) -> None:
        self.lines += lines

    def fresh(self) -> Printer:
        following = _Collector()
        following.lines = self.lines  # the same list: it may still hold lines
        return following

    def take(self) -> list[LogLine]:
        taken = list(map(LogLine.of, self.lines))
        self.lines.clear()
        return taken


def _log_lines(record: Record, request: Mapping[str, Any]) -> Generator[LogLine, None, None]:
    collector = _Collector()
    watch = JobWatcher(record, collector, retries=request["follow"])
    if request["follow"]:
        for _ in JobFollower(watch).steps(request):
            yield from collector.take()
    elif not watch.print_existing(request):
        yield from collector.take()
        raise TorchfabError(
            f"not all nodes of job {record.name} could be asked for their logs", f"fab status {record.name}"
        )
    yield from collector.take()


def job(
    name: str = "", project: StrPath | None = None, ssh_config: StrPath = "", identities: Sequence[StrPath] = ()
) -> Job:
    """Open a job that was launched from here, by a program or by a command.

    Parameters
    ----------
    name : str
        Its name. Default: the latest one.
    project : path, optional
        A folder of the project. Default: the current one, or the nearest above it with settings.
    ssh_config : path
        An ssh config file. Default: as launched.
    identities : sequence of path
        Private keys to log in with. Default: as launched.

    Returns
    -------
    Job

    Raises
    ------
    JobNameError
        No such job was launched from here.
    """
    with quiet():
        ctx = open_context(project, ssh_config=ssh_config, identities=identities)
        return Job(job_lookup.find(name, ctx), ctx)


def jobs(project: StrPath | None = None, ssh_config: StrPath = "") -> tuple[JobInfo, ...]:
    """List the jobs that were launched from here, the latest first. Nodes of jobs that run are asked for their state.

    Parameters
    ----------
    project : path, optional
        A folder of the project. Default: the current one, or the nearest above it with settings.
    ssh_config : path
        An ssh config file. Default: as launched.

    Returns
    -------
    tuple of JobInfo
        `job(info.name)` opens one.
    """
    with quiet():
        records, _ = job_lookup.find_all(open_context(project, ssh_config=ssh_config))
        return tuple(map(JobInfo.of, records))

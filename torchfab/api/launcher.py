"""`launch` and `dry_run`: the `fab launch-*` commands for Python programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard, TypeVar, cast, overload

from torchfab.api import function_calls, options
from torchfab.api.boundary import quiet
from torchfab.api.function_calls import MAX_RESULT_MB
from torchfab.api.handle import Job, StrPath, open_context
from torchfab.cli.flags import JobFlags, LaunchFlags
from torchfab.core.errors import UsageError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.launchers import AnyLauncher, BatchLauncher, Launcher
from torchfab.launching import launcher_table
from torchfab.launching.context import CommandContext, fab_argv
from torchfab.launching.launch import build_request, default_name, dry_run_text
from torchfab.launching.launch import launch as launch_on_hosts
from torchfab.launching.submit import plan, submit
from torchfab.records import Record

Command = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Result = TypeVar("Result")


@overload
def launch(
    command: Callable[..., Result],
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    max_result_mb: float = MAX_RESULT_MB,
    hosts: str | Sequence[str] | None = None,
    launcher: str = "per-node",
    env: Mapping[str, Any] | None = None,
    project: StrPath | None = None,
    ssh_config: StrPath = "",
    identities: Sequence[StrPath] = (),
    connect_timeout: float | None = None,
    **flags: Any,
) -> tuple[Result, ...]: ...


@overload
def launch(
    command: Command | None = None,
    *,
    hosts: str | Sequence[str] | None = None,
    launcher: str = "per-node",
    env: Mapping[str, Any] | None = None,
    project: StrPath | None = None,
    ssh_config: StrPath = "",
    identities: Sequence[StrPath] = (),
    connect_timeout: float | None = None,
    **flags: Any,
) -> Job: ...


def launch(
    command: Command | Callable[..., Any] | None = None,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    max_result_mb: float = MAX_RESULT_MB,
    hosts: str | Sequence[str] | None = None,
    launcher: str = "per-node",
    env: Mapping[str, Any] | None = None,
    project: StrPath | None = None,
    ssh_config: StrPath = "",
    identities: Sequence[StrPath] = (),
    connect_timeout: float | None = None,
    **flags: Any,
) -> Job | tuple[Any, ...]:
    """Launch a script or any command on all hosts, as `fab launch-<launcher> -- COMMAND` does; or run a function.

    A function runs on all ranks, in the environment of a script: RANK, MASTER_ADDR and so on are set, and the function
    itself calls `torch.distributed.init_process_group()`. `launch` then waits, and returns the results of all ranks.
    Ctrl-C stops waiting and does not affect the job; `job(name).results()` waits again.

    Parameters
    ----------
    command : sequence of str
        The arguments after `--` on the command line: `["train.py", "--lr", "3e-4"]`, `["-m", "pkg.train"]`. A single
        path may be a string. Default: the setting `script`. Or a function: a lambda or a function of `__main__` or of
        a notebook is sent by value, a function of a module by name, so that the nodes need the module.
    args, kwargs : sequence, Mapping
        The arguments of a function, the same on all ranks.
    max_result_mb : float
        The largest result of a rank, in MiB. Default 1024.
    hosts : str or sequence of str, optional
        Hosts, as after `-H`. Default: the hosts file of the project; `hostfile=` names another.
    launcher : str
        `per-node`, `per-gpu`, `deepspeed`, `mpi`, `colossalai`, `slurm` or `kubernetes`. Default `per-node`.
    env : Mapping, optional
        Variables for every process, besides those that are forwarded.
    project : path, optional
        A folder of the project. Default: the current one, or the nearest above it with settings.
    ssh_config : path
        An ssh config file, as given with `-S`. Default: the user's and the system's.
    identities : sequence of path
        Private keys to log in with, as given with `-i`.
    connect_timeout : float, optional
        Seconds for each step of a connection, as given with `-t`. Default: the setting.
    **flags
        The flags of the launcher (`fab --help launch-per-node` lists them), with `_` for `-`: `name`, `workdir`,
        `python`, `nproc_per_node`, `max_restarts`. Default of `name`: that of the script or the function, the time, and
        four random digits. With `supervise=True`, a supervisor in tmux restarts the job (`restarts`, `stall`,
        `backoff`, `notify`).

    Returns
    -------
    Job
        The job, which has started or has been submitted.
    tuple of Any
        If `command` is a function: its results, by rank.

    Raises
    ------
    TorchfabError
        The launch failed; the message is that of the command line, and no process is left.
    FunctionError
        The function raised an exception, on the rank that failed first.
    """
    with quiet():
        ctx = open_context(
            project, _script_of(command), options.hosts_flag(hosts), ssh_config, identities, connect_timeout
        )
        ready = _ready(command, (args, kwargs or {}), max_result_mb, launcher, env or {}, flags, ctx)
        job = Job(ready.start(), ready.ctx)
    return job.results() if _is_function(command) else job


def dry_run(
    command: Command | Callable[..., Any] | None = None,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    max_result_mb: float = MAX_RESULT_MB,
    hosts: str | Sequence[str] | None = None,
    launcher: str = "per-node",
    env: Mapping[str, Any] | None = None,
    project: StrPath | None = None,
    ssh_config: StrPath = "",
    identities: Sequence[StrPath] = (),
    connect_timeout: float | None = None,
    **flags: Any,
) -> str:
    """Return the output of `--dry-run` for a launch with the same arguments; nothing is started.

    Parameters
    ----------
    command : sequence of str or callable, optional
        The command or function, as for `launch`.
    args, kwargs : sequence, Mapping
        The arguments of a function.
    max_result_mb : float
        The largest result of a rank, in MiB. Default 1024.
    hosts : str or sequence of str, optional
        Hosts, as after `-H`. Default: the hosts file of the project.
    launcher : str
        Name of the launcher. Default `per-node`.
    env : Mapping, optional
        Variables for every process, besides those that are forwarded.
    project : path, optional
        A folder of the project. Default: the current one, or the nearest above it with settings.
    ssh_config : path
        An ssh config file. Default: the user's and the system's.
    identities : sequence of path
        Private keys to log in with.
    connect_timeout : float, optional
        Seconds for each step of a connection. Default: the setting.
    **flags
        The flags of the launcher, as for `launch`.

    Returns
    -------
    str
        A shell script that does the same without torchfab, an sbatch file, or a manifest.

    Raises
    ------
    TorchfabError
        An argument is wrong, or a check of a node failed.
    """
    with quiet():
        ctx = open_context(
            project, _script_of(command), options.hosts_flag(hosts), ssh_config, identities, connect_timeout
        )
        return _ready(command, (args, kwargs or {}), max_result_mb, launcher, env or {}, flags, ctx).dry_run()


@dataclass(frozen=True)
class _Ready:
    """A launch whose arguments are checked."""

    module: AnyLauncher
    flags: JobFlags
    own: Any
    ctx: CommandContext

    def start(self) -> Record:
        """Launch the job on hosts, or submit it."""
        if self.module.NAME not in launcher_table.ON_HOSTS:
            record = submit(cast(BatchLauncher, self.module), self.flags, self.own, self.ctx)
        elif getattr(self.flags, "supervise", False):
            return self._start_supervised()
        else:
            record = launch_on_hosts(cast(Launcher, self.module), cast(LaunchFlags, self.flags), self.own, self.ctx)
        assert record is not None, "no dry run"
        return record

    def _start_supervised(self) -> Record:
        from torchfab.commands.supervise import launch_supervised

        flags = replace(cast(LaunchFlags, self.flags), tmux=True)
        fab = fab_argv(str(self.ctx.root), "")
        launch_supervised(cast(Launcher, self.module), flags, self.own, self.ctx, fab)
        return self.ctx.records.get(flags.name)

    def dry_run(self) -> str:
        """Return the dry run."""
        if self.module.NAME in launcher_table.ON_HOSTS:
            launcher, flags = cast(Launcher, self.module), cast(LaunchFlags, self.flags)
            return dry_run_text(build_request(launcher, flags, self.own, self.ctx), self.ctx)
        return plan(cast(BatchLauncher, self.module), self.flags, self.own, self.ctx).text


def _ready(
    command: Command | Callable[..., Any] | None,
    arguments: tuple[Sequence[Any], Mapping[str, Any]],
    max_result_mb: float,
    launcher: str,
    env: Mapping[str, Any],
    flags: Mapping[str, Any],
    ctx: CommandContext,
) -> _Ready:
    module, shared = options.launcher_named(launcher)
    given, own = options.parse_flags(module, shared, flags)
    given = replace(given, env=options.env_flags(env))
    if ctx.hosts and launcher not in launcher_table.ON_HOSTS:
        raise UsageError(f"launcher {launcher!r} takes no hosts: its scheduler chooses them", "leave hosts out")
    if _is_function(command):
        ctx, given = _function_context(command, arguments, max_result_mb, ctx, given, launcher)
    elif any(arguments):
        raise UsageError("args and kwargs are for functions only", "put the arguments of a script into the command")
    return _Ready(module, _named(given, ctx.script or tuple(ctx.config["script"]), ctx), own, ctx)


def _script_of(command: Command | Callable[..., Any] | None) -> tuple[str, ...] | None:
    return None if _is_function(command) else _script(cast(Command | None, command))


def _is_function(command: object) -> TypeGuard[Callable[..., Any]]:
    return callable(command)


def _function_context(
    function: Callable[..., Any],
    arguments: tuple[Sequence[Any], Mapping[str, Any]],
    max_result_mb: float,
    ctx: CommandContext,
    flags: JobFlags,
    launcher: str,
) -> tuple[CommandContext, JobFlags]:
    """Return the context and the flags of a job that runs a function."""
    if launcher not in launcher_table.ON_HOSTS:
        raise UsageError(
            f"launcher {launcher!r} runs scripts and programs, not functions of this program",
            f"launchers for functions: {', '.join(launcher_table.ON_HOSTS)}",
        )
    command = function_calls.command_of(function, *arguments, max_result_mb)
    flags = _named(flags, (function_calls.name_of(function),), ctx)
    return replace(ctx, script=command.script, command=command), flags


def _named(flags: JobFlags, words: Sequence[str], ctx: CommandContext) -> JobFlags:
    """Return flags that name the job: a program may launch the same twice within a second."""
    if flags.name or not words:
        return flags
    return replace(flags, name=f"{default_name(words, ctx.now)}-{ctx.token[:4]}")


def _script(command: Command | None) -> tuple[str, ...] | None:
    """Return the words after `--`."""
    if command is None:
        return None
    if isinstance(command, str) and len(command.split()) > 1 and not os.path.exists(command):
        words = ", ".join(map(repr, command.split()))
        raise UsageError(f"the command is a list of words, got {command!r}", f"launch([{words}], …)")
    words_given = options.as_sequence(command)
    if not all(isinstance(word, str | os.PathLike) for word in words_given):
        raise UsageError(f"the command is a list of texts, got {command!r}", 'launch(["train.py", "--lr", "3e-4"], …)')
    return tuple(map(os.fspath, words_given))

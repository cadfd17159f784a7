"""`launch`: what `fab launch-*` does, for a Python program."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from torchfab.api import options
from torchfab.api.boundary import quiet
from torchfab.api.handle import Job, StrPath, open_context
from torchfab.cli.flags import LaunchFlags
from torchfab.core.errors import UsageError
from torchfab.launchers import BatchLauncher, Launcher
from torchfab.launching import launcher_table
from torchfab.launching.launch import launch as launch_on_hosts
from torchfab.launching.submit import submit


def launch(
    command: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    *,
    hosts: str | Sequence[str] | None = None,
    launcher: str = "per-node",
    env: Mapping[str, Any] | None = None,
    project: StrPath | None = None,
    ssh_config: StrPath = "",
    identities: Sequence[StrPath] = (),
    connect_timeout: float | None = None,
    **flags: Any,
) -> Job:
    """Launch a script or any command on all hosts, as `fab launch-<launcher> -- COMMAND` does.

    Parameters
    ----------
    command : sequence of str
        What stands after `--` on the command line: `["train.py", "--lr", "3e-4"]`, `["-m", "pkg.train"]`. One path may
        stand alone. Default: the setting `script`.
    hosts : str or sequence of str, optional
        Hosts, as after `-H`. Default: the hosts file of the project; `hostfile=` names another.
    launcher : str
        `per-node`, `per-gpu`, `deepspeed`, `mpi`, `colossalai`, `slurm` or `kubernetes`. Default `per-node`.
    env : Mapping, optional
        Variables for every process, besides those that are forwarded.
    project : path, optional
        A folder of the project. Default: the current one, or the nearest above it with settings.
    ssh_config : path
        An ssh config file, as of `-S`. Default: the user's and the system's.
    identities : sequence of path
        Private keys to log in with, as of `-i`.
    connect_timeout : float, optional
        Seconds for each step of a connection, as of `-t`. Default: the setting.
    **flags
        The flags of the launcher (`fab --help launch-per-node` lists them), with `_` for `-`: `name`, `workdir`,
        `python`, `nproc_per_node`, `max_restarts`.

    Returns
    -------
    Job
        The job, which runs by then, or is submitted.

    Raises
    ------
    TorchfabError
        As the command line prints it; nothing was left running.
    """
    with quiet():
        module, shared = options.launcher_named(launcher)
        given, own = options.parse_flags(module, shared, flags)
        given = replace(given, env=options.env_flags(env or {}))
        ctx = open_context(
            project, _script(command), options.hosts_flag(hosts), ssh_config, identities, connect_timeout
        )
        if launcher in launcher_table.ON_HOSTS:
            record = launch_on_hosts(cast(Launcher, module), cast(LaunchFlags, given), own, ctx)
        elif ctx.hosts:
            raise UsageError(f"launcher {launcher!r} takes no hosts: its scheduler chooses them", "leave hosts out")
        else:
            record = submit(cast(BatchLauncher, module), given, own, ctx)
        assert record is not None, "no dry run"
        return Job(record, ctx)


def _script(command: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None) -> tuple[str, ...] | None:
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

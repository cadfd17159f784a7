"""Read everything that a command takes from its environment, so that other code is pure."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import torchfab
from torchfab.cli.executor import CommandLine, TaskContext
from torchfab.config import validate
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core import environment
from torchfab.core.command import Command
from torchfab.core.errors import UsageError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.records import Records


@dataclass(frozen=True)
class CommandContext:
    """Working directory, time, environment, configuration and connection settings of a command.

    Parameters
    ----------
    config : Mapping
        The section `torchfab` of fabric.yaml.
    root : Path
        The project's folder.
    cwd : str
        The current directory.
    now : float
        Seconds since the epoch.
    token : str
        Eight random hexadecimal digits.
    environ : Mapping of str to str
        The environment of the command.
    settings : ConnectionSettings
        The settings for connections to hosts.
    script : tuple of str, optional
        The arguments after `--` on the command line: a script and its own arguments; None without `--`.
    command : Command, optional
        A command of torchfab itself (`fab network`), instead of the arguments after `--`.
    hosts : str
        The value of `-H`; empty if it was not given.
    mask_key : str
        64 random hexadecimal digits, which are never shown.
    """

    config: Mapping[str, Any]
    root: Path
    cwd: str
    now: float
    token: str
    environ: Mapping[str, str]
    settings: ConnectionSettings
    script: tuple[str, ...] | None = None
    command: Command | None = None
    hosts: str = ""
    mask_key: str = field(default="", repr=False)

    @property
    def records(self) -> Records:
        """The records of this machine."""
        return Records(self.root / Path(self.config["records"]).expanduser())


def command_context(c: TaskContext, root: Path) -> CommandContext:
    """Return the context of a command.

    Parameters
    ----------
    c : TaskContext
        The context that Fabric calls the task with.
    root : Path
        The project's folder.

    Returns
    -------
    CommandContext
        The context.

    Raises
    ------
    UsageError
        A setting, or a flag of `fab` itself, has a wrong value.
    """
    return make_context(c.config, replace(c.command_line, project=root))


def make_context(configuration: Any, command_line: CommandLine) -> CommandContext:
    """Return the context of a command, from Fabric's configuration and the rest of the command line.

    Parameters
    ----------
    configuration : fabric.Config
        The settings.
    command_line : CommandLine
        The script, the hosts, and the project.

    Returns
    -------
    CommandContext
        The context.

    Raises
    ------
    UsageError
        A setting, or a flag of `fab` itself, has a wrong value.
    """
    config = configuration.torchfab
    validate.check(config)
    validate.check_variables(os.environ)
    kwargs = dict(configuration.connect_kwargs)
    settings = ConnectionSettings(
        ssh_config=_ssh_config(configuration._runtime_ssh_path),
        identities=identities(kwargs.get("key_filename")),
        connect_timeout_s=_timeout_s(kwargs.get("timeout")) or float(config.connect_timeout_s),
        timeout_is_given=bool(_timeout_s(kwargs.get("timeout"))),
        fanout=int(config.fanout),
        agent_python=config.agent_python,
        prepare_timeout_s=float(config.prepare_timeout_s),
        start_timeout_s=float(config.start_timeout_s),
        answer_timeout_s=float(config.answer_timeout_s),
        reach_timeout_s=float(config.reach_timeout_s),
        sync_timeout_s=float(config.sync_timeout_s),
        tmux_conf=config.tmux_conf,
    )
    token, mask_key = secrets.token_hex(4), secrets.token_hex(32)
    return CommandContext(
        config=config,
        root=command_line.project,
        cwd=os.getcwd(),
        now=time.time(),
        token=token,
        environ=dict(os.environ),
        settings=settings,
        script=command_line.script,
        hosts=command_line.hosts,
        mask_key=mask_key,
    )


def _ssh_config(path: str | None) -> str:
    if path and os.path.isdir(path):
        raise UsageError(f"fab -S {path}: it is a folder", "name an ssh config file")
    return os.path.abspath(path) if path else ""


def identities(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the paths of private keys, absolute.

    Parameters
    ----------
    given : str or sequence of str, optional
        The value of `fab -i`, or of connect_kwargs in fabric.yaml, where a single key may be a plain string.

    Returns
    -------
    tuple of str
        Empty if none are given.

    Raises
    ------
    UsageError
        There is no such file.
    """
    paths = [given] if isinstance(given, str) else given or ()
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str) for path in paths):
        raise UsageError(f"connect_kwargs.key_filename is a path or a list of paths, got {given!r}")
    return tuple(map(_identity, paths))


def setup_commands(given: str, ctx: CommandContext) -> str:
    """Return the commands of `--setup`, otherwise those of the setting.

    Parameters
    ----------
    given : str
        The value of `--setup`; empty if it was not given.
    ctx : CommandContext
        The settings.

    Returns
    -------
    str
        Empty if there are none.

    Raises
    ------
    UsageError
        They assign a secret, or contain a NUL.
    """
    where = "--setup" if given else "the setting setup"
    return environment.check_setup(given or ctx.config["setup"], where).strip()


def _identity(path: str) -> str:
    if not os.path.isfile(os.path.expanduser(path)):
        raise UsageError(f"fab -i {path}: there is no such file", "name the private key to log in with")
    return os.path.abspath(os.path.expanduser(path))


def _timeout_s(given: object) -> float:
    if given is not None and (not isinstance(given, int | float) or isinstance(given, bool)):
        raise UsageError(f"connect_kwargs.timeout is a number of seconds, got {given!r}")
    if given is not None and given < 0:
        raise UsageError(f"-t must be at least 1 second, got {given}")
    return float(given or 0)


def fab_argv(root: str, config: str) -> tuple[str, ...]:
    """Return the command that runs this project's `fab` from any directory.

    Parameters
    ----------
    root : str
        The folder of the project.
    config : str
        Path of the configuration file; empty: none.

    Returns
    -------
    tuple of str
        The command.
    """
    program = Path(torchfab.__file__).with_name("__main__.py")
    return (sys.executable, str(program), "-r", root, *(("-f", config) if config else ()))

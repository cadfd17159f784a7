"""What a command reads of the world, in one place, so that all that follows from it is pure."""

from __future__ import annotations

import os
import secrets as random_source
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchfab.cli.executor import TaskContext
from torchfab.config import validate
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import UsageError
from torchfab.records import Records


@dataclass(frozen=True)
class CommandContext:
    """What a launch reads of the world: taken in one place, so that all that follows is pure.

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
        This terminal's environment.
    settings : ConnectionSettings
        How to reach hosts.
    words : tuple of str, optional
        The words after `--` on the command line; None where there is no `--`.
    hosts : str
        The value of `-H`; empty where it was not given.
    mask_key : str
        64 random hexadecimal digits, of which nothing is ever shown.
    """

    config: Mapping[str, Any]
    root: Path
    cwd: str
    now: float
    token: str
    environ: Mapping[str, str]
    settings: ConnectionSettings
    words: tuple[str, ...] | None = None
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

    Raises
    ------
    UsageError
        A setting, or a flag of `fab` itself, has a wrong value.
    """
    config = c.config.torchfab
    validate.check(config)
    validate.check_variables(os.environ)
    kwargs = dict(c.config.connect_kwargs)
    settings = ConnectionSettings(
        ssh_config=os.path.abspath(path) if (path := c.config._runtime_ssh_path) else "",
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
    )
    token, mask_key = random_source.token_hex(4), random_source.token_hex(32)
    line = c.command_line
    return CommandContext(
        config=config,
        root=root,
        cwd=os.getcwd(),
        now=time.time(),
        token=token,
        environ=dict(os.environ),
        settings=settings,
        words=line.words,
        hosts=line.hosts,
        mask_key=mask_key,
    )


def identities(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the private keys of `fab -i`, or of connect_kwargs in a file of settings, where one may stand alone.

    Raises
    ------
    UsageError
        There is no such file.
    """
    paths = [given] if isinstance(given, str) else given or ()
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str) for path in paths):
        raise UsageError(f"connect_kwargs.key_filename is a path or a list of paths, got {given!r}")
    return tuple(map(_identity, paths))


def _identity(path: str) -> str:
    if not os.path.isfile(os.path.expanduser(path)):
        raise UsageError(f"fab -i {path}: there is no such file", "name the private key that logs in")
    return os.path.abspath(os.path.expanduser(path))


def _timeout_s(given: object) -> float:
    if given is not None and (not isinstance(given, int | float) or isinstance(given, bool)):
        raise UsageError(f"connect_kwargs.timeout is a number of seconds, got {given!r}")
    if given is not None and given < 0:
        raise UsageError(f"-t is at least 1 second, got {given}")
    return float(given or 0)

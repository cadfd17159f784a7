"""`torchfab mcp`: serve commands as tools of the Model Context Protocol on stdin and stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torchfab.agents import tools
from torchfab.core import extras
from torchfab.core.console import write_err
from torchfab.launching.context import CommandContext


def run(allow: str, fab: Sequence[str], ctx: CommandContext) -> int:
    """Serve until stdin ends.

    Parameters
    ----------
    allow : str
        The value of `--allow`.
    fab : sequence of str
        The command that runs this project's `fab`.
    ctx : CommandContext
        The settings of this command, which those of all calls get.

    Returns
    -------
    int
        Exit code 0.

    Raises
    ------
    UsageError
        `allow` names something else than launch and stop.
    TorchfabError
        The package mcp is not installed.
    """
    actions = tools.allowed(allow)
    try:
        from torchfab.agents import server
    except ImportError:
        raise extras.missing("mcp", "mcp", "torchfab mcp") from None
    if sys.stdin.isatty():
        write_err("waiting for a client on stdin; a client starts this command itself: docs/agents.md; Ctrl-C ends it")
    server.serve((*fab, *core_flags(ctx)), actions)
    return 0


def core_flags(ctx: CommandContext) -> tuple[str, ...]:
    """Return the flags of `fab` itself that this command was given.

    Parameters
    ----------
    ctx : CommandContext
        The settings of this command.

    Returns
    -------
    tuple of str
        `-S`, `-i`, `-t` and `-H` with their values.
    """
    settings = ctx.settings
    return (
        *(("-S", settings.ssh_config) if settings.ssh_config else ()),
        *(word for key in settings.identities for word in ("-i", key)),
        *(("-t", f"{settings.connect_timeout_s:g}") if settings.timeout_is_given else ()),
        *(("-H", ctx.hosts) if ctx.hosts else ()),
    )

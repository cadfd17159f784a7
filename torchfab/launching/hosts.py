"""Read the hosts of a command from `-H`, a hosts or gpus file, or the current Slurm allocation."""

from __future__ import annotations

import re
from pathlib import Path

from torchfab.cli.flags import LaunchFlags
from torchfab.core import hostfiles, inventory, slurm_allocation, specs
from torchfab.core.console import write_err
from torchfab.core.errors import InventoryError
from torchfab.core.hostfiles import HostFile, nodefile
from torchfab.core.hostfiles.dialect import Source
from torchfab.core.specs import Node, Slot
from torchfab.launching.context import CommandContext

_GROUPS = re.compile(r"@[A-Za-z0-9_.:-]+(,@[A-Za-z0-9_.:-]+)*")


def read_inventory(flags: LaunchFlags, ctx: CommandContext) -> tuple[tuple[Node, ...], tuple[Slot, ...]]:
    """Read the hosts of a launch from `-H`, otherwise from the file.

    Parameters
    ----------
    flags : LaunchFlags
        The flags of the launch.
    ctx : CommandContext
        The context of the command.

    Returns
    -------
    tuple of Node, tuple of Slot
        The nodes; the slots are empty without a gpus file.

    Raises
    ------
    UsageError
        A flag or a line is not valid.
    """
    gpufile = getattr(flags, "gpufile", None)
    if gpufile is None:
        return read_nodes(flags.hostfile, ctx, flags.hostfile_format), ()
    file_format = hostfiles.check_format(flags.hostfile_format)
    if ctx.hosts:
        found = hostfiles.parse_gpus(_flag(ctx), file_format)
        return _announced(found, "-H", ctx), found.inventory.slots
    path = _file(gpufile, ctx.config["gpufile"], ctx)
    found = hostfiles.read_gpus(path, file_format)
    return _announced(found, hostfiles.name_of(path), ctx), found.inventory.slots


def read_nodes(hostfile: str, ctx: CommandContext, file_format: str = "") -> tuple[Node, ...]:
    """Read the hosts of a command from `-H`, otherwise from `--hostfile`, otherwise from the configured file.

    Parameters
    ----------
    hostfile : str
        The value of `--hostfile`; empty if it was not given.
    ctx : CommandContext
        Working directory, configuration and the value of `-H`.
    file_format : str
        The value of `--hostfile-format`. Default: detected from the file.

    Returns
    -------
    tuple of Node

    Raises
    ------
    UsageError
        A flag or a line is not valid.
    """
    file_format = hostfiles.check_format(file_format)
    if ctx.hosts:
        chosen = _groups_of_file(hostfile, ctx, file_format)
        if chosen is not None:
            return _announced(chosen, hostfiles.name_of(_file(hostfile, ctx.config["hostfile"], ctx)), ctx)
        return _announced(hostfiles.parse_hosts(_flag(ctx), file_format), "-H", ctx)
    if hostfile == slurm_allocation.HOSTFILE_KEYWORD:
        return slurm_allocation.allocated_nodes(ctx.environ)
    path = _file(hostfile, ctx.config["hostfile"], ctx)
    found = hostfiles.read_hosts(path, file_format or nodefile.format_of(str(path), ctx.environ))
    return _announced(found, hostfiles.name_of(path), ctx)


def _flag(ctx: CommandContext) -> Source:
    return Source(inventory.split_hosts_flag(ctx.hosts), "-H")


def _groups_of_file(hostfile: str, ctx: CommandContext, file_format: str) -> HostFile | None:
    """Return the hosts of `-H @gpu` if the hosts file has groups; None for groups of ClusterShell."""
    if not _GROUPS.fullmatch(ctx.hosts):
        return None
    path = _file(hostfile, ctx.config["hostfile"], ctx)
    try:
        if not hostfiles.read_hosts(path, file_format).groups:
            return None
    except InventoryError:
        if hostfile:  # it was named together with the groups
            raise
        return None
    return hostfiles.read_hosts(path, file_format, tuple(name[1:] for name in ctx.hosts.split(",")))


def _announced(found: HostFile, name: str, ctx: CommandContext) -> tuple[Node, ...]:
    """Print the dialect of a file and the lines that were left out; return its nodes."""
    nodes = found.inventory.nodes
    if found.dialect:
        choice = f" of {len(found.groups)} groups; -H @{found.groups[0]} takes one" if len(found.groups) > 1 else ""
        choice = f" of {ctx.hosts}" if choice and ctx.hosts else choice
        write_err(f"{name}: read as {found.dialect}: {len(nodes)} host{'s' if len(nodes) != 1 else ''}{choice}")
    for note in found.inventory.notes:
        write_err(f"note: {note}")
    return tuple(_with_node_dir(node, ctx) for node in nodes)


def _with_node_dir(node: Node, ctx: CommandContext) -> Node:
    """Return a node with its own folder for jobs if it has its own working directory."""
    if not node.workdir:
        return node
    return Node(**{**vars(node), "node_dir": specs.node_dir(ctx.config["node_dir"], node.workdir)})


def _file(given: str, default: str, ctx: CommandContext) -> Path:
    if given == hostfiles.STDIN:
        return Path(given)
    return Path(ctx.cwd, given) if given else ctx.root / default

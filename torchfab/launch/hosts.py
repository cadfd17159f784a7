"""The hosts of a command: those of `-H`, of a hosts or gpus file, or of the current Slurm allocation."""

from __future__ import annotations

from pathlib import Path

from torchfab.cli.flags import LaunchFlags
from torchfab.core import inventory, slurm_allocation
from torchfab.core.specs import Node, Slot
from torchfab.launch.context import CommandContext


def read_inventory(flags: LaunchFlags, ctx: CommandContext) -> tuple[tuple[Node, ...], tuple[Slot, ...]]:
    """Read the hosts of a launch from `-H`, or else from the file.

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
    """
    hosts = ctx.hosts
    gpufile = getattr(flags, "gpufile", None)
    if gpufile is None:
        return read_nodes(flags.hostfile, ctx), ()
    if hosts:
        return inventory.parse_gpus(inventory.split_hosts_flag(hosts), "-H")
    return inventory.read_gpus(_file(gpufile, ctx.config["gpufile"], ctx))


def read_nodes(hostfile: str, ctx: CommandContext) -> tuple[Node, ...]:
    """Read the hosts of a command from `-H`, or else from `--hostfile`, or else from the configured file.

    Parameters
    ----------
    hostfile : str
        The value of `--hostfile`: a path, `slurm`, or empty.
    ctx : CommandContext
        The context of the command.

    Returns
    -------
    tuple of Node
        The nodes, in the order of the file.
    """
    if ctx.hosts:
        return inventory.parse_hosts_flag(ctx.hosts)
    if hostfile == slurm_allocation.HOSTFILE_KEYWORD:
        return slurm_allocation.allocated_nodes(ctx.environ)
    return inventory.read_hosts(_file(hostfile, ctx.config["hostfile"], ctx))


def _file(given: str, default: str, ctx: CommandContext) -> Path:
    return Path(ctx.cwd, given) if given else ctx.root / default

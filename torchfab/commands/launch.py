"""`fab launch-*`: launch or submit a job, and with --follow print its logs until it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchfab.cli.flags import JobFlags, LaunchFlags
from torchfab.launchers import BatchLauncher, Launcher
from torchfab.launching.context import CommandContext
from torchfab.launching.launch import launch
from torchfab.launching.submit import submit
from torchfab.records import Record


def run_launch(launcher: Launcher, flags: LaunchFlags, own: Any, ctx: CommandContext, fab: Sequence[str]) -> int:
    """Launch a job on the tmux runtime.

    Parameters
    ----------
    launcher : module
        Plans what runs.
    flags, own : dataclass
        The flags that all launches share, and those of this launcher.
    ctx : CommandContext
        Working directory, environment, configuration and records.
    fab : sequence of str
        The command that runs this project's `fab` again, for a supervisor in tmux.

    Returns
    -------
    int
        Exit code: 0, or with --follow or --supervise that of the job.
    """
    if flags.supervise:
        from torchfab.commands import supervise

        return supervise.launch_supervised(launcher, flags, own, ctx, fab)
    return _exit_code(launch(launcher, flags, own, ctx), flags, ctx)


def run_submit(launcher: BatchLauncher, flags: JobFlags, own: Any, ctx: CommandContext) -> int:
    """Submit a job to a cluster's scheduler.

    Parameters
    ----------
    launcher : module
        Plans what runs.
    flags, own : dataclass
        The flags that all launches share, and those of this launcher.
    ctx : CommandContext
        Working directory, environment, configuration and records.

    Returns
    -------
    int
        Exit code: 0, or with --follow that of the job.
    """
    return _exit_code(submit(launcher, flags, own, ctx), flags, ctx)


def _exit_code(record: Record | None, flags: JobFlags, ctx: CommandContext) -> int:
    if record is None or not flags.follow:
        return 0
    from torchfab.commands import logs

    return logs.follow(record, ctx.config["failure_grace_s"], ctx.config["stall_s"])

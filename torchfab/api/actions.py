"""Methods of a job that commands offer too: signal, checkpoint, pull, forward, supervise."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torchfab.commands import checkpoint as checkpoint_command
from torchfab.commands import forward as forward_command
from torchfab.commands import pull as pull_command
from torchfab.commands import signal as signal_command
from torchfab.commands import supervise as supervise_command
from torchfab.core.errors import HostError, TorchfabError
from torchfab.launching.context import CommandContext, fab_argv
from torchfab.records import Record

_END_S = 5.0


def signal(record: Record, name: str, ranks: str) -> tuple[int, ...]:
    """Send a signal as a notice, as `fab signal` does.

    Parameters
    ----------
    record : Record
        The job.
    name : str
        Name of the signal, such as `USR1`.
    ranks : str
        Ranks, such as `0,2-5`; empty for all.

    Returns
    -------
    tuple of int
        The ranks that the signal was sent to.

    Raises
    ------
    UsageError
        The signal would end a rank, or the job does not run. Nothing was sent.
    """
    full = signal_command.notice(name, record.name)
    reports = signal_command.deliver(record, full, signal_command.chosen_ranks(record, ranks))
    sent = [each.rank for report in reports for each in report.ranks if each.sent and each.rank is not None]
    return tuple(sorted(sent))


def checkpoint(record: Record, name: str, folders: Sequence[str], timeout_s: float) -> tuple[str, ...]:
    """Ask for a checkpoint, and wait until it is complete.

    Parameters
    ----------
    record : Record
        The job.
    name : str
        Name of the signal, such as `USR1`.
    folders : sequence of str
        Folders of the checkpoints on the nodes; empty to find them.
    timeout_s : float
        Time limit, in seconds.

    Returns
    -------
    tuple of str
        The paths of its files.

    Raises
    ------
    UsageError
        A rank does not handle the signal, or the job does not run.
    TorchfabError
        Ranks ended, or no checkpoint was complete in time.
    """
    full = signal_command.notice(name, record.name)
    save = checkpoint_command.await_checkpoint(record, full, folders, timeout_s)
    if save.running < save.ranks:
        raise TorchfabError(checkpoint_command.describe_ended(record, save, full))
    return tuple(dict.fromkeys(each.path for each in save.files))


def pull(record: Record, paths: Sequence[str], to: str, ranks: str, ctx: CommandContext) -> Path:
    """Copy files of a job from its nodes.

    Parameters
    ----------
    record : Record
        The job.
    paths : sequence of str
        Paths and patterns on the nodes.
    to : str
        The folder here; empty for `pulled/<job>`.
    ranks : str
        Ranks whose nodes are copied from; empty for all.
    ctx : CommandContext
        The context of the command.

    Returns
    -------
    Path
        The folder here.
    """
    return pull_command.pull_files((record.name, *paths), to, ranks, ctx)


@contextmanager
def forward(record: Record, port: str, host: str, ctx: CommandContext) -> Iterator[str]:
    """Forward a port of a job's node for the duration of a block.

    Parameters
    ----------
    record : Record
        The job.
    port : str
        `PORT`, `LOCAL:PORT` or `tensorboard`.
    host : str
        Host or rank of the node; empty for the first, or the one on which tensorboard runs.
    ctx : CommandContext
        The context of the command.

    Yields
    ------
    str
        The URL on this machine.
    """
    from torchfab.transport.ssh import forward as tunnels

    target, local_port, settings = forward_command.target_of((record.name, port), host, ctx)
    if target.node.is_local and local_port == target.port:
        yield f"http://{tunnels.LOOPBACK}:{local_port}"
        return
    with tunnels.listen(local_port, target.port) as listener:
        tunnel = tunnels.Tunnel(target.node, settings, target.address, target.port)
        thread = threading.Thread(target=_serve, args=(listener, tunnel), daemon=True)
        thread.start()
        try:
            yield f"http://{tunnels.LOOPBACK}:{listener.getsockname()[1]}"
        finally:
            tunnel.close()  # ends the thread, which checks whether it is open
            listener.close()
            thread.join(_END_S)


def _serve(listener: object, tunnel: object) -> None:
    from torchfab.transport.ssh import forward as tunnels

    try:
        tunnels.serve(listener, tunnel, lambda _: None)  # type: ignore[arg-type]
    except (HostError, OSError):  # the block has ended, or the connection was lost
        pass


def supervise(record: Record, flags: supervise_command.SuperviseFlags, ctx: CommandContext) -> None:
    """Supervise a job in tmux, as `fab supervise --tmux` does.

    Parameters
    ----------
    record : Record
        The job.
    flags : SuperviseFlags
        The flags of `fab supervise`.
    ctx : CommandContext
        The context of the command.
    """
    supervise_command.supervise_existing(record, flags, False, True, ctx, fab_argv(str(ctx.root), ""))

"""`fab top`: show the load of the nodes live, over one open connection per node."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torchfab import documents, runtimes
from torchfab.core.console import write_out
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.launching import job_lookup
from torchfab.launching.context import CommandContext
from torchfab.launching.hosts import read_nodes
from torchfab.monitoring import host_load
from torchfab.monitoring.host_load import Snapshot
from torchfab.monitoring.live_load import POLL_S, LiveLoad, Target
from torchfab.records import Record

_MARKS = re.compile(r"low power.*|unreachable:.*|.*it may hang|GPU .*|Unknown Error", re.MULTILINE)

Show = Callable[[Snapshot], None]


def run(
    job: str,
    hostfile: str,
    interval_s: float,
    once: bool,
    as_json: bool,
    ctx: CommandContext,
    hostfile_format: str = "",
) -> int:
    """Show the load of hosts, as the flags of `fab top` select them.

    Parameters
    ----------
    job : str
        Name of a job; empty: use the hosts.
    hostfile : str
        Hosts file; empty: the default one.
    interval_s : float
        Seconds between two measurements.
    once : bool
        Print one measurement and exit.
    as_json : bool
        Print JSON.
    ctx : CommandContext
        Records and settings of this command.
    hostfile_format : str
        Format of the hosts file. Default: detected from its content.

    Returns
    -------
    int
        Exit code.
    """
    target = find_target(job, hostfile, ctx, hostfile_format)
    return show_hosts(target, interval_s, once, as_json, job_lookup.stall_s(None, ctx))


def show_hosts(target: Target, interval_s: float, once: bool, as_json: bool, stall_s: float) -> int:
    """Show the load of the nodes until Ctrl-C.

    Parameters
    ----------
    target : Target
        The hosts and the job.
    interval_s : float
        Seconds between two measurements.
    once : bool
        Print one measurement and exit.
    as_json : bool
        Print JSON.
    stall_s : float
        Seconds without output after which the job counts as hanging.

    Returns
    -------
    int
        Exit code: with `once` 1 if a node did not answer, else 0.
    """
    try:
        with LiveLoad(target, interval_s, stall_s) as live:
            if once:
                return _once(live, as_json)
            with _display(as_json) as show:
                _refresh_loop(live, show)
    except KeyboardInterrupt:  # Ctrl-C is the normal way to exit
        pass
    return 0


def _once(live: LiveLoad, as_json: bool) -> int:
    live.wait_for_all()
    found = live.snapshot()
    write_out(documents.encode(host_load.as_json(found)) if as_json else host_load.render(found))
    return 0 if live.is_complete() else 1


def _refresh_loop(live: LiveLoad, show: Show) -> None:
    due = time.monotonic() + min(1.0, live.interval_s)
    while True:
        live.update()
        if time.monotonic() >= due:
            show(live.snapshot())
            due = time.monotonic() + live.interval_s
        time.sleep(POLL_S)


# ---- display


@contextmanager
def _display(as_json: bool) -> Iterator[Show]:
    """Yield the function that shows a snapshot: in place on a terminal, otherwise one below the other."""
    if as_json:
        yield lambda found: write_out(documents.encode(host_load.as_json(found), indent=None))
    elif not sys.stdout.isatty():
        yield lambda found: write_out(
            f"{time.strftime('%H:%M:%S', time.localtime(found.time))}\n{host_load.render(found)}\n"
        )
    else:
        from rich.live import Live

        with Live(auto_refresh=False, screen=True, vertical_overflow="crop") as live:
            yield lambda found: live.update(_coloured(host_load.render(found)), refresh=True)


def _coloured(text: str) -> Any:
    from rich.text import Text

    coloured = Text(text, no_wrap=True, overflow="crop")
    coloured.highlight_regex(_MARKS, "bold red")
    return coloured


# ---- selection of the hosts


def find_target(job: str, hostfile: str, ctx: CommandContext, hostfile_format: str = "") -> Target:
    """Return the hosts to show: those of a named job, else those of `-H` or the hosts file.

    In the second case, the latest job is shown too if it runs on these hosts.

    Parameters
    ----------
    job : str
        Name of a job; empty: use the hosts.
    hostfile : str
        Hosts file; empty: the default one.
    ctx : CommandContext
        Records and settings of this command.
    hostfile_format : str
        Format of the hosts file. Default: detected from its content.

    Returns
    -------
    Target
        The hosts and the job.

    Raises
    ------
    UsageError
        Both a job and hosts are given.
    """
    if job:
        if hostfile or ctx.hosts:
            raise UsageError(
                "both a job's name and hosts were given", "give either the job, or hosts with -H or --hostfile"
            )
        return _target_of(job_lookup.find(job, ctx))
    nodes = read_nodes(hostfile, ctx, hostfile_format)
    record = _latest(ctx)
    if record is None:
        return Target(nodes, ctx.settings)
    by_host = {(node.host, node.port): address for node, address in runtimes.load(record.runtime).machines(record)}
    addresses = {node.rank: by_host.get((node.host, node.port)) for node in nodes}
    return Target(nodes, ctx.settings, record if any(addresses.values()) else None, addresses)


def _target_of(record: Record) -> Target:
    machines = runtimes.load(record.runtime).machines(record)
    return Target([node for node, _ in machines], record.settings, record, {node.rank: a for node, a in machines})


def _latest(ctx: CommandContext) -> Record | None:
    """Return the latest job if it has not ended and ssh reaches its hosts."""
    try:
        record = ctx.records.latest()
        if record.last_seen()["ended"]:
            return None
        runtimes.load(record.runtime).machines(record)
    except TorchfabError:
        return None
    return record

"""`fab top`: show the load of the nodes live, over one open connection per node."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from typing import Any

from torchfab import documents, runtimes
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.console import write_out
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.launching import job_lookup
from torchfab.launching.context import CommandContext
from torchfab.launching.hosts import read_nodes
from torchfab.monitoring import host_load
from torchfab.monitoring.host_load import HostLoad, Snapshot
from torchfab.records import Record
from torchfab.transport.messages import Request
from torchfab.transport.messages.load import JobLoadRequest, LoadFrame, LoadRequest
from torchfab.transport.node_streams import NodeStreams

_POLL_S = 0.05
_MARKS = re.compile(r"low power.*|unreachable:.*|.*it may hang|GPU .*|Unknown Error", re.MULTILINE)

Show = Callable[[Snapshot], None]


@dataclass(frozen=True)
class Target:
    """The hosts to show, and the job on them.

    Parameters
    ----------
    nodes : sequence of Node
        The hosts.
    settings : ConnectionSettings
        How the hosts are reached.
    record : Record, optional
        The job that runs on the hosts.
    addresses : Mapping of int to Mapping
        Fields that identify the job in requests, by rank of the nodes that run it.
    """

    nodes: Sequence[Node]
    settings: ConnectionSettings
    record: Record | None = None
    addresses: Mapping[int, Mapping[str, Any] | None] = field(default_factory=dict)


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
    streams = NodeStreams(
        target.nodes, target.settings, lambda node: _request(target, node, interval_s), 3 * interval_s + 5
    )
    views = {node.rank: HostLoad(node) for node in target.nodes}

    def snapshot() -> Snapshot:
        record = target.record
        name, least = (record.name, record.min_nodes) if record else ("", 0)
        ranks = frozenset(rank for rank, address in target.addresses.items() if address)
        return Snapshot(time.time(), tuple(views.values()), name, ranks, stall_s, least)

    try:
        if once:
            return _once(streams, views, snapshot, as_json, _first_answer_s(target.settings, interval_s))
        with _display(as_json) as show:
            _refresh_loop(streams, views, snapshot, show, interval_s)
    except KeyboardInterrupt:  # Ctrl-C is the normal way to exit
        return 0
    finally:
        streams.close()
    return 0


def _request(target: Target, node: Node, interval_s: float) -> Request[LoadFrame]:
    address = target.addresses.get(node.rank)
    return JobLoadRequest(**address, interval_s=interval_s) if address else LoadRequest(interval_s=interval_s)


def _first_answer_s(settings: ConnectionSettings, interval_s: float) -> float:
    return 3 * settings.connect_timeout_s + settings.answer_timeout_s + interval_s


def _once(
    streams: NodeStreams[LoadFrame],
    views: dict[int, HostLoad],
    snapshot: Callable[[], Snapshot],
    as_json: bool,
    patience_s: float,
) -> int:
    deadline = time.monotonic() + patience_s
    while any(view.load is None and not view.error for view in views.values()) and time.monotonic() < deadline:
        _update(streams, views)
        time.sleep(_POLL_S)
    found = snapshot()
    write_out(documents.encode(host_load.as_json(found)) if as_json else host_load.render(found))
    return 1 if any(view.error or view.load is None for view in found.views) else 0


def _refresh_loop(
    streams: NodeStreams[LoadFrame],
    views: dict[int, HostLoad],
    snapshot: Callable[[], Snapshot],
    show: Show,
    interval_s: float,
) -> None:
    due = time.monotonic() + min(1.0, interval_s)
    while True:
        _update(streams, views)
        if time.monotonic() >= due:
            show(snapshot())
            due = time.monotonic() + interval_s
        time.sleep(_POLL_S)


def _update(streams: NodeStreams[LoadFrame], views: dict[int, HostLoad]) -> None:
    for node, update in streams.poll():
        if isinstance(update, TorchfabError):
            views[node.rank] = HostLoad(node, error=update.message.splitlines()[0])
        elif problems := [problem for frame in update for problem in frame.problems]:
            views[node.rank] = HostLoad(node, error=problems[0].what)
            streams.reconnect(node)
        elif loads := [frame.load for frame in update if frame.load is not None]:
            views[node.rank] = HostLoad(node, loads[-1])


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

"""`fab top`: what the nodes do, live; one connection per node, kept."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torchfab import runtimes
from torchfab.commands import job_lookup
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.console import write_out
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.core.specs import Node
from torchfab.launch.context import CommandContext
from torchfab.launch.hosts import read_nodes
from torchfab.monitoring import host_load
from torchfab.monitoring.host_load import Snapshot, View
from torchfab.records import Record
from torchfab.transport.streams import NodeStreams

_POLL_S = 0.05
_MARKS = re.compile(r"low power.*|unreachable:.*|.*it may hang|GPU .*|Unknown Error", re.MULTILINE)

Show = Callable[[Snapshot], None]


@dataclass(frozen=True)
class Target:
    """Whom to look at.

    Parameters
    ----------
    nodes : sequence of Node
        The hosts.
    addresses : Mapping of int to Mapping
        What names the job, by node rank, on those that run it.
    """

    nodes: Sequence[Node]
    settings: ConnectionSettings
    record: Record | None = None
    addresses: Mapping[int, Mapping[str, Any] | None] = field(default_factory=dict)


def run(job: str, hostfile: str, interval_s: float, once: bool, as_json: bool, ctx: CommandContext) -> int:
    """Show what hosts do, as the flags of `fab top` say; return the exit code."""
    target = find_target(job, hostfile, ctx)
    return show_hosts(target, interval_s, once, as_json, job_lookup.stall_s(None, ctx))


def show_hosts(target: Target, interval_s: float, once: bool, as_json: bool, stall_s: float) -> int:
    """Show what the nodes do until Ctrl-C; return 0, or with `once` 1 if a node did not tell."""
    feed = NodeStreams(
        target.nodes, target.settings, lambda node: _request(target, node, interval_s), 3 * interval_s + 5
    )
    views = {node.rank: View(node) for node in target.nodes}

    def snapshot() -> Snapshot:
        record = target.record
        name, least = (record.name, record.min_nodes) if record else ("", 0)
        ranks = frozenset(rank for rank, address in target.addresses.items() if address)
        return Snapshot(time.time(), tuple(views.values()), name, ranks, stall_s, least)

    try:
        if once:
            return _once(feed, views, snapshot, as_json, _patience_s(target.settings, interval_s))
        with _display(as_json) as show:
            _for_ever(feed, views, snapshot, show, interval_s)
    except KeyboardInterrupt:  # how one leaves it
        return 0
    finally:
        feed.close()
    return 0


def _request(target: Target, node: Node, interval_s: float) -> Mapping[str, Any]:
    return {**(target.addresses.get(node.rank) or {}), "op": "load", "interval_s": interval_s}


def _patience_s(settings: ConnectionSettings, interval_s: float) -> float:
    return 3 * settings.connect_timeout_s + settings.answer_timeout_s + interval_s


def _once(
    feed: NodeStreams, views: dict[int, View], snapshot: Callable[[], Snapshot], as_json: bool, patience_s: float
) -> int:
    deadline = time.monotonic() + patience_s
    while any(view.load is None and not view.error for view in views.values()) and time.monotonic() < deadline:
        _take(feed, views)
        time.sleep(_POLL_S)
    found = snapshot()
    write_out(json.dumps(host_load.as_json(found), indent=2) if as_json else host_load.text(found))
    return 1 if any(view.error or view.load is None for view in found.views) else 0


def _for_ever(
    feed: NodeStreams, views: dict[int, View], snapshot: Callable[[], Snapshot], show: Show, interval_s: float
) -> None:
    due = time.monotonic() + min(1.0, interval_s)
    while True:
        _take(feed, views)
        if time.monotonic() >= due:
            show(snapshot())
            due = time.monotonic() + interval_s
        time.sleep(_POLL_S)


def _take(feed: NodeStreams, views: dict[int, View]) -> None:
    for node, news in feed.news():
        if isinstance(news, TorchfabError):
            views[node.rank] = View(node, error=news.message.splitlines()[0])
        elif "load" in news:
            views[node.rank] = View(node, news["load"])


# ---- showing it


@contextmanager
def _display(as_json: bool) -> Iterator[Show]:
    """Give what shows a snapshot: in place on a terminal, else one after the other."""
    if as_json:
        yield lambda found: write_out(json.dumps(host_load.as_json(found)))
    elif not sys.stdout.isatty():
        yield lambda found: write_out(
            f"{time.strftime('%H:%M:%S', time.localtime(found.time))}\n{host_load.text(found)}\n"
        )
    else:
        from rich.live import Live

        with Live(auto_refresh=False, screen=True, vertical_overflow="crop") as live:
            yield lambda found: live.update(_coloured(host_load.text(found)), refresh=True)


def _coloured(text: str) -> Any:
    from rich.text import Text

    shown = Text(text, no_wrap=True, overflow="crop")
    shown.highlight_regex(_MARKS, "bold red")
    return shown


# ---- whom to look at


def find_target(job: str, hostfile: str, ctx: CommandContext) -> Target:
    """Return the hosts to look at: those of a job that is named, else those of `-H` or the hosts file.

    In the second case the latest job is looked at where it runs on them.
    """
    if job:
        if hostfile or ctx.hosts:
            raise UsageError("a job's name and hosts were given", "name the job, or its hosts with -H or --hostfile")
        return _target_of(job_lookup.find(job, ctx))
    nodes = read_nodes(hostfile, ctx)
    record = _latest(ctx)
    if record is None:
        return Target(nodes, ctx.settings)
    where = {(node.host, node.port): address for node, address in runtimes.load(record.runtime).machines(record)}
    addresses = {node.rank: where.get((node.host, node.port)) for node in nodes}
    return Target(nodes, ctx.settings, record if any(addresses.values()) else None, addresses)


def _target_of(record: Record) -> Target:
    machines = runtimes.load(record.runtime).machines(record)
    return Target([node for node, _ in machines], record.settings, record, {node.rank: a for node, a in machines})


def _latest(ctx: CommandContext) -> Record | None:
    """Return the latest job if it has not ended, and ssh reaches it."""
    try:
        record = ctx.records.latest()
        if record.last_seen()["ended"]:
            return None
        runtimes.load(record.runtime).machines(record)
    except TorchfabError:
        return None
    return record

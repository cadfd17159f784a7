"""The load of hosts as it arrives, over one open connection per host."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import TorchfabError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.monitoring.host_load import HostLoad, Snapshot
from torchfab.records import Record
from torchfab.transport.messages import Request
from torchfab.transport.messages.load import JobLoadRequest, LoadFrame, LoadRequest
from torchfab.transport.node_streams import NodeStreams

POLL_S = 0.05


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


class LiveLoad:
    """The latest load of each host of a target; a context manager, which closes the connections.

    Parameters
    ----------
    target : Target
        The hosts and the job.
    interval_s : float
        Seconds between two measurements.
    stall_s : float
        Seconds without output after which the job counts as hanging.
    """

    def __init__(self, target: Target, interval_s: float, stall_s: float) -> None:
        self.target, self.interval_s, self.stall_s = target, interval_s, stall_s
        self.views = {node.rank: HostLoad(node) for node in target.nodes}
        self._streams = NodeStreams(target.nodes, target.settings, self._request, 3 * interval_s + 5)

    def __enter__(self) -> LiveLoad:
        return self

    def __exit__(self, *_: object) -> None:
        self._streams.close()

    def _request(self, node: Node) -> Request[LoadFrame]:
        address = self.target.addresses.get(node.rank)
        interval_s = self.interval_s
        return JobLoadRequest(**address, interval_s=interval_s) if address else LoadRequest(interval_s=interval_s)

    def update(self) -> None:
        """Take what has arrived."""
        take_updates(self._streams, self.views)

    def wait_for_all(self) -> None:
        """Wait until each host has answered or failed, or the time limits of connections and answers have passed."""
        settings = self.target.settings
        limit_s = 3 * settings.connect_timeout_s + settings.answer_timeout_s + self.interval_s
        deadline = time.monotonic() + limit_s
        while any(view.load is None and not view.error for view in self.views.values()) and time.monotonic() < deadline:
            self.update()
            time.sleep(POLL_S)

    def snapshot(self) -> Snapshot:
        """Return all hosts as they are now.

        Returns
        -------
        Snapshot
        """
        record = self.target.record
        name, least = (record.name, record.min_nodes) if record else ("", 0)
        ranks = frozenset(rank for rank, address in self.target.addresses.items() if address)
        return Snapshot(time.time(), tuple(self.views.values()), name, ranks, self.stall_s, least)

    def is_complete(self) -> bool:
        """Test whether every host has answered.

        Returns
        -------
        bool
        """
        return not any(view.error or view.load is None for view in self.views.values())


def take_updates(streams: NodeStreams[LoadFrame], views: dict[int, HostLoad]) -> None:
    """Take what has arrived; a node that reports a problem is asked again.

    Parameters
    ----------
    streams : NodeStreams
        The connections.
    views : dict of int to HostLoad
        The latest load by node rank, which is changed.
    """
    for node, update in streams.poll():
        if isinstance(update, TorchfabError):
            views[node.rank] = HostLoad(node, error=update.message.splitlines()[0])
        elif problems := [problem for frame in update for problem in frame.problems]:
            views[node.rank] = HostLoad(node, error=problems[0].what)
            streams.reconnect(node)
        elif loads := [frame.load for frame in update if frame.load is not None]:
            views[node.rank] = HostLoad(node, loads[-1])

"""Before a restart: wait until the GPUs have freed the memory of earlier attempts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import TorchfabError
from torchfab.core.format import duration, format_bytes
from torchfab.core.specs import Node
from torchfab.supervise.event_journal import EventJournal
from torchfab.transport.messages.load import GpuMemoryRequest, HeldGpu
from torchfab.transport.session_pool import SessionPool

_PAUSE_S = 1.0
_MIB = 1024**2
_EVENT = "gpu-memory"


def await_free(
    nodes: Sequence[Node],
    settings: ConnectionSettings,
    journal: EventJournal,
    since: float,
    timeout_s: float,
    check_stop: Callable[[], None],
) -> None:
    """Wait until no GPU of these nodes holds memory of an earlier attempt; after the timeout, report them and return.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes of the next attempt. Nodes that do not answer are skipped.
    settings : ConnectionSettings
        How they are reached.
    journal : EventJournal
        The job's events, and its name.
    since : float
        When the job was first launched, in seconds since the epoch: older processes share the GPUs with the job.
    timeout_s : float
        Seconds; 0: do not wait.
    check_stop : callable
        Raises an exception to end the wait.
    """
    if timeout_s <= 0:
        return
    begun, announced, name = time.monotonic(), False, journal.record.name
    with SessionPool(nodes, settings) as sessions:
        while held := _held(sessions, name, since):
            waited_s = time.monotonic() - begun
            if waited_s >= timeout_s:
                journal.note(_EVENT, f"GPU memory is not free after {duration(waited_s)}: {held}; launching anyway")
                return
            if not announced:
                announced = True
                journal.note(_EVENT, f"waiting up to {duration(timeout_s)} for free GPU memory: {held}")
            check_stop()
            time.sleep(_PAUSE_S)
    if announced:
        journal.note(_EVENT, f"GPU memory is free after {duration(time.monotonic() - begun)}")


def _held(sessions: SessionPool, name: str, since: float) -> str:
    """Describe the GPUs that still hold memory of the job; empty if there are none."""

    def request(node: Node) -> GpuMemoryRequest:
        return GpuMemoryRequest(since=since, devices=list(node.gpus), name=name)

    found: dict[str, list[HeldGpu]] = {}
    for node, result in sessions.request(request, sessions.settings.answer_timeout_s):
        if not isinstance(result, TorchfabError) and result.value.held:
            found[node.label] = result.value.held
    return "; ".join(describe(host, found[host]) for host in sorted(found))


def describe(host: str, held: Sequence[HeldGpu]) -> str:
    """Describe the processes that hold the memory of a host's GPUs.

    Parameters
    ----------
    host : str
        The host's label.
    held : sequence of HeldGpu
        Its GPUs; at least one.

    Returns
    -------
    str
        The first GPU, and the number of the others.
    """
    first = held[0]
    more = f", and {len(held) - 1} more GPUs" if len(held) > 2 else ", and 1 more GPU" if len(held) == 2 else ""
    return f"GPU {first.index} of {host} holds {format_bytes(first.memory_mib * _MIB)} of {first.by}{more}"

"""Waiting before a restart until GPU memory is free: its words, its time-out, and a stop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from tests.factories import make_nodes
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError, TorchfabError
from torchfab.core.specs import Node
from torchfab.supervise import gpu_memory
from torchfab.transport.messages.load import GpuMemoryAnswer, HeldGpu
from torchfab.transport.session_pool import Response

NODES = make_nodes("node1", "node2")
HELD = [HeldGpu(index=index, memory_mib=71680.0, by="7, which has ended") for index in range(3)]


def wait(rounds: list[list[HeldGpu]], timeout_s: float = 60.0) -> list[str]:
    """Wait on two nodes, the second of which cannot be reached; return what is said."""
    left = list(rounds)

    def ask(*_: object) -> Iterator[tuple[Node, Any]]:
        held = left.pop(0) if len(left) > 1 else left[0]
        yield NODES[0], Response(GpuMemoryAnswer(held), 0.0, 0.0)
        yield NODES[1], HostError("no answer")

    journal = mock.Mock()
    with mock.patch.object(gpu_memory, "SessionPool") as pool, mock.patch.object(gpu_memory, "_PAUSE_S", 0.01):
        pool.return_value.__enter__.return_value.request.side_effect = ask
        gpu_memory.await_free(NODES, ConnectionSettings(), journal, 0.0, timeout_s, lambda: None)
    return [call.args[1] for call in journal.note.mock_calls]


def test_free_memory_needs_no_word() -> None:
    assert wait([[]]) == []
    assert wait([HELD], timeout_s=0) == []


def test_the_wait_is_announced_once_and_its_end_is_said() -> None:
    first, last = wait([HELD, HELD[:2], HELD[:1], []])
    assert first == (
        "waiting up to 1 min 00 s for free GPU memory: GPU 0 of node1 holds 70 GiB of 7, which has ended, "
        "and 2 more GPUs"
    )
    assert last == "GPU memory is free after 0 s"


def test_after_the_time_out_the_job_is_launched_all_the_same() -> None:
    *_, last = wait([HELD[:1]], timeout_s=0.05)
    assert last == (
        "GPU memory is not free after 0 s: GPU 0 of node1 holds 70 GiB of 7, which has ended; launching anyway"
    )


def test_a_stop_ends_the_wait() -> None:
    def check_stop() -> None:
        raise TorchfabError("a stop was requested")

    with (
        mock.patch.object(gpu_memory, "SessionPool"),
        mock.patch.object(gpu_memory, "_held", return_value="x"),
        pytest.raises(TorchfabError, match="a stop was requested"),
    ):
        gpu_memory.await_free(NODES, ConnectionSettings(), mock.Mock(), 0.0, 60.0, check_stop)

"""A NodeGroup does what Fabric's documentation says of a group, with a bounded number of threads."""

from __future__ import annotations

import gc
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import fabric
import pytest
from fabric.exceptions import GroupException

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError
from torchfab.core.specs import Node
from torchfab.transport.ssh import NodeConnection, NodeGroup

LOCAL = [Node(rank, "localhost") for rank in range(6)]


def test_members_are_the_connections_of_the_nodes_in_their_order() -> None:
    group = NodeGroup(LOCAL, ConnectionSettings())
    assert isinstance(group, fabric.ThreadingGroup)
    assert [connection.node for connection in group] == LOCAL
    assert all(isinstance(connection, fabric.Connection) for connection in group)


def test_two_nodes_on_one_host_are_two_entries_of_a_result() -> None:
    results = NodeGroup(LOCAL, ConnectionSettings()).map(lambda connection: connection.node.rank)
    assert isinstance(results, fabric.GroupResult)
    assert sorted(results.values()) == [0, 1, 2, 3, 4, 5]
    assert not results.failed


@pytest.fixture
def unclosed_pipes() -> Iterator[None]:
    """Collect what Invoke's local runner leaves open before a later test is blamed for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


@pytest.mark.usefixtures("unclosed_pipes")
def test_run_runs_a_command_on_every_node() -> None:
    results = NodeGroup(LOCAL[:2], ConnectionSettings()).run("echo $((6 * 7))", hide=True, in_stream=False)
    assert [result.stdout for result in results.values()] == ["42\n", "42\n"]


def test_a_failure_of_one_host_is_an_entry_like_any_other() -> None:
    def act(connection: NodeConnection) -> int:
        return 10 // connection.node.rank

    results = NodeGroup(LOCAL[:3], ConnectionSettings()).map(act)
    assert {connection.node.rank: result for connection, result in results.succeeded.items()} == {1: 10, 2: 5}
    ((connection, error),) = results.failed.items()
    assert connection.node.rank == 0
    assert isinstance(error, ZeroDivisionError)


@pytest.mark.usefixtures("unclosed_pipes")
def test_run_raises_what_fabric_raises_when_a_command_fails() -> None:
    with pytest.raises(GroupException) as caught:
        NodeGroup(LOCAL[:2], ConnectionSettings()).run("exit 3", hide=True, in_stream=False)
    assert [error.result.exited for error in caught.value.result.failed.values()] == [3, 3]
    caught.value.result.clear()


def test_results_come_as_they_arrive() -> None:
    released = threading.Event()

    def act(connection: NodeConnection) -> int:
        if connection.node.rank == 0:
            released.wait(60)
        return connection.node.rank

    finished = []
    for connection, _ in NodeGroup(LOCAL[:3], ConnectionSettings(fanout=2)).as_completed(act):
        finished.append(connection.node.rank)
        if len(finished) == 2:
            released.set()
    assert finished[2] == 0


def test_no_more_threads_work_than_the_fan_out_allows() -> None:
    at_work, most, lock = [0], [0], threading.Lock()

    def act(_: NodeConnection) -> None:
        with lock:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        time.sleep(0.01)
        with lock:
            at_work[0] -= 1

    NodeGroup(LOCAL, ConnectionSettings(fanout=2)).map(act)
    assert most[0] <= 2


def test_a_host_without_a_usable_route_is_an_error_of_its_own(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host other\n  RevokedHostKeys /keys\n")
    group = NodeGroup([LOCAL[0], Node(1, "other")], ConnectionSettings(ssh_config=str(config)))
    assert group[0].error is None
    with pytest.raises(HostError, match="revokedhostkeys /keys is not supported"):
        group[1].open()

"""Rehearsal clusters for the integration tests, started for the first test that needs them, and removed at the end."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import Cluster, Kind, RehearsalError
from tests.integration import launcher_contract
from tests.integration.fab import Fab
from tests.integration.faults import Matrix
from tests.support import absent

HERE = Path(__file__).parent
ORDINARY_USER = "trainer"  # need not exist: the nodes have their own /etc/passwd


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def _no_leftovers() -> None:
    """Remove clusters that a killed earlier session left."""
    Cluster.clean()


def ordinary_user() -> str | None:
    """Return the user of loopback nodes; None for the caller, if that is not root."""
    return ORDINARY_USER if os.geteuid() == 0 else None


def _up(kind: Kind, user: str | None, nodes: int = 2) -> Cluster:
    try:
        return Cluster.up(nodes=nodes, kind=kind, user=user)
    except RehearsalError as error:
        absent(str(error))


@pytest.fixture(scope="session")
def netns_cluster(_no_leftovers: None) -> Iterator[Cluster]:
    """Two nodes as root in network namespaces; a test repairs what it breaks."""
    with _up("netns", user=None) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def loopback_cluster(_no_leftovers: None) -> Iterator[Cluster]:
    """Two nodes on loopback addresses as an ordinary user, also when root runs the tests."""
    with _up("loopback", user=ordinary_user()) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def three(_no_leftovers: None) -> Iterator[Cluster]:
    """Three nodes as root in network namespaces."""
    with _up("netns", user=None, nodes=3) as cluster:
        yield cluster


@pytest.fixture
def fab3(three: Cluster) -> Iterator[Fab]:
    """The real `fab`, with the hosts of `three`."""
    yield from _fab(three)


@pytest.fixture
def fab(netns_cluster: Cluster) -> Iterator[Fab]:
    """The real `fab`, with the hosts of `netns_cluster`; jobs that are left are stopped at the end."""
    yield from _fab(netns_cluster)


@pytest.fixture
def matrix(request: pytest.FixtureRequest) -> Iterator[Matrix]:
    """Rows of the fault matrix, each of which must be checked in all its cells."""
    made = Matrix()
    yield made
    request.node.user_properties += made.properties()
    unchecked = {row.fault: check for row in made.rows for check, cell in row.cells.items() if not cell}
    assert not unchecked


@pytest.fixture
def loopback_fab(loopback_cluster: Cluster) -> Iterator[Fab]:
    """The real `fab` as an ordinary user, with the hosts of `loopback_cluster`."""
    yield from _fab(loopback_cluster)


def _fab(cluster: Cluster) -> Iterator[Fab]:
    made = Fab(cluster)
    yield made
    made.close()


@pytest.fixture(params=["netns", "loopback"])
def any_fab(request: pytest.FixtureRequest) -> Fab:
    """The real `fab` on either kind of cluster: as root in namespaces, as an ordinary user on loopback addresses."""
    made: Fab = request.getfixturevalue("fab" if request.param == "netns" else "loopback_fab")
    return made


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all processes of this test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def cache(shared: Path) -> Path:
    """Return the data cache that trainings on `netns_cluster` share."""
    path = shared / "cache"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="session")
def reference(netns_cluster: Cluster, cache: Path, shared: Path) -> float:
    """Return the loss at step 20 under launch-per-node, which the other launchers must match; computed once."""
    path = shared / "reference"
    with (shared / "reference.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            made = Fab(netns_cluster)
            try:
                path.write_text(str(launcher_contract.loss_at_step_20(made, cache, "launch-per-node")))
            finally:
                made.close()
    return float(path.read_text())

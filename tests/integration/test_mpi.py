"""launch-mpi on two hosts, with both flavours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import launcher_contract
from tests.integration.fab import Fab
from tests.integration.jobs import ok, status_of
from tests.support import require

FLAVOURS = {"openmpi": "mpirun.openmpi", "mpich": "mpiexec.hydra"}


@pytest.fixture(params=FLAVOURS)
def way(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Give the words of a launch with each flavour."""
    require(FLAVOURS[request.param])
    return ("launch-mpi", "--flavour", request.param)


def test_arguments_arrive_and_a_failing_rank_ends_the_job(fab: Fab, way: tuple[str, ...]) -> None:
    launcher_contract.check_that_words_arrive_and_a_failure_ends_it(fab, *way)


def test_stop_ends_one_job_and_a_killed_head_is_reported(fab: Fab, way: tuple[str, ...]) -> None:
    launcher_contract.check_that_stop_stops_one_job_and_a_killed_head_is_seen(fab, *way)


def test_a_head_that_fails_early_ends_the_job_on_all_nodes(fab: Fab, way: tuple[str, ...]) -> None:
    ok(fab(*launcher_contract.hosts(fab, *way), "--interface", "none7", "--name", "early", "--", "light.py", "1"))
    assert fab("wait", "early", timeout_s=60).rc not in (0, 143)
    status = status_of(fab, "early")
    assert (status["state"], status["first_failure"]["host"]) == ("failed", status["nodes"][0]["host"])
    assert "none7" in ok(fab("logs", "early")).stdout
    assert fab.processes() == {}


def test_the_dry_run_works_when_pasted(fab: Fab, way: tuple[str, ...]) -> None:
    launcher_contract.check_that_the_dry_run_works_when_pasted(fab, *way)


def test_it_trains_as_launch_per_node_does(fab: Fab, way: tuple[str, ...], cache: Path, reference: float) -> None:
    assert launcher_contract.loss_at_step_20(fab, cache, *way) == pytest.approx(reference, abs=1e-4)

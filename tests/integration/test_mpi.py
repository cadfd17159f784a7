"""launch-mpi on two hosts, with both flavours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import launcher_contract, plays
from tests.integration.fab import Fab
from tests.integration.jobs import ok, status_of
from tests.support import require

FLAVOURS = {"openmpi": "mpirun.openmpi", "mpich": "mpiexec.hydra"}


@pytest.fixture(params=FLAVOURS)
def task(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Return the arguments of a launch with each flavour."""
    require(FLAVOURS[request.param])
    return ("launch-mpi", "--flavour", request.param)


def test_arguments_arrive_and_a_failing_rank_ends_the_job(fab: Fab, task: tuple[str, ...]) -> None:
    launcher_contract.check_arguments_and_failure(fab, *task)


def test_stop_ends_one_job_and_a_killed_head_is_reported(fab: Fab, task: tuple[str, ...]) -> None:
    launcher_contract.check_stop_and_killed_head(fab, *task)


def test_all_commands_name_the_same_first_rank(fab: Fab, task: tuple[str, ...]) -> None:
    plays.check_one(fab, {"openmpi": "kills-peers", "mpich": "exit-0"}[task[-1]], *task)


def test_a_head_that_fails_early_ends_the_job_on_all_nodes(fab: Fab, task: tuple[str, ...]) -> None:
    ok(fab(*launcher_contract.hosts(fab, *task), "--interface", "none7", "--name", "early", "--", "light.py", "1"))
    assert fab("wait", "early", timeout_s=60).rc not in (0, 143)
    status = status_of(fab, "early")
    assert (status["state"], status["first_failure"]["host"]) == ("failed", status["nodes"][0]["host"])
    assert "none7" in ok(fab("logs", "early")).stdout
    assert fab.processes() == {}


def test_the_dry_run_works_when_pasted(fab: Fab, task: tuple[str, ...]) -> None:
    launcher_contract.check_pasted_dry_run(fab, *task)


def test_it_trains_as_launch_per_node_does(fab: Fab, task: tuple[str, ...], cache: Path, reference: float) -> None:
    assert launcher_contract.loss_at_step_20(fab, cache, *task) == pytest.approx(reference, abs=1e-4)

"""launch-colossalai on two hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import launcher_contract, plays
from tests.integration.fab import Fab
from tests.support import absent


@pytest.fixture
def task() -> tuple[str, ...]:
    """Return the arguments of a launch."""
    if not launcher_contract.has_module("colossalai"):
        absent("colossalai is not installed")
    return ("launch-colossalai",)


def test_arguments_arrive_and_a_failing_rank_ends_the_job(fab: Fab, task: tuple[str, ...]) -> None:
    launcher_contract.check_arguments_and_failure(fab, *task)


def test_stop_ends_one_job_and_a_killed_head_is_reported(fab: Fab, task: tuple[str, ...]) -> None:
    launcher_contract.check_stop_and_killed_head(fab, *task)


def test_all_commands_name_the_same_first_rank(fab: Fab, task: tuple[str, ...]) -> None:
    plays.check_one(fab, "early", *task)


def test_the_dry_run_works_when_pasted(fab: Fab, task: tuple[str, ...]) -> None:
    launcher_contract.check_pasted_dry_run(fab, *task)


def test_it_trains_as_launch_per_node_does(fab: Fab, task: tuple[str, ...], cache: Path, reference: float) -> None:
    assert launcher_contract.loss_at_step_20(fab, cache, *task) == pytest.approx(reference, abs=1e-4)

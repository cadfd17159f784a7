"""launch-colossalai on two hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import launcher_contract
from tests.integration.fab import Fab
from tests.support import absent


@pytest.fixture
def way() -> tuple[str, ...]:
    """Give the words of a launch."""
    if not launcher_contract.has_module("colossalai"):
        absent("colossalai is not installed")
    return ("launch-colossalai",)


def test_arguments_arrive_and_a_failing_rank_ends_the_job(fab: Fab, way: tuple[str, ...]) -> None:
    launcher_contract.check_that_words_arrive_and_a_failure_ends_it(fab, *way)


def test_stop_ends_one_job_and_a_killed_head_is_reported(fab: Fab, way: tuple[str, ...]) -> None:
    launcher_contract.check_that_stop_stops_one_job_and_a_killed_head_is_seen(fab, *way)


def test_the_dry_run_works_when_pasted(fab: Fab, way: tuple[str, ...]) -> None:
    launcher_contract.check_that_the_dry_run_works_when_pasted(fab, *way)


def test_it_trains_as_launch_per_node_does(fab: Fab, way: tuple[str, ...], cache: Path, reference: float) -> None:
    assert launcher_contract.loss_at_step_20(fab, cache, *way) == pytest.approx(reference, abs=1e-4)

"""The hosts of a Slurm allocation, from its environment."""

from __future__ import annotations

import pytest

from torchfab.core import slurm_allocation
from torchfab.core.errors import UsageError


@pytest.mark.parametrize(
    ("more", "slots"),
    [
        ({}, [None] * 3),
        ({"SLURM_TASKS_PER_NODE": "1(x3)"}, [None] * 3),  # set by salloc where no tasks were requested
        ({"SLURM_NTASKS": "5", "SLURM_TASKS_PER_NODE": "2(x2),1"}, [2, 2, 1]),
        ({"SLURM_GPUS_PER_NODE": "8"}, [8] * 3),
        ({"SLURM_GPUS_PER_NODE": "a100:2,v100:2", "SLURM_NTASKS": "3", "SLURM_TASKS_PER_NODE": "1(x3)"}, [4] * 3),
        ({"SLURM_GPUS": "6"}, [2] * 3),
        ({"SLURM_GPUS": "7"}, [None] * 3),
    ],
)
def test_hosts_and_slots_follow_the_allocation(more: dict[str, str], slots: list[int | None]) -> None:
    nodes = slurm_allocation.allocated_nodes({"SLURM_JOB_NODELIST": "gpu[07-08],login2", **more})
    assert [(node.rank, node.host) for node in nodes] == [(0, "gpu07"), (1, "gpu08"), (2, "login2")]
    assert [node.slots for node in nodes] == slots


def test_the_error_outside_an_allocation_has_a_fix() -> None:
    with pytest.raises(UsageError, match=r"this terminal is not in one\n  fix: start one: salloc --nodes 2"):
        slurm_allocation.allocated_nodes({})

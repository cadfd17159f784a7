"""What `fab stop` says of how the ranks ended."""

from __future__ import annotations

import pytest

from torchfab.commands import stop
from torchfab.core.specs import Node
from torchfab.runtimes import StopReport


def report(ended: int, killed: int, seconds: float = 0.0) -> StopReport:
    return StopReport(Node(0, "node1"), 1, ended_ranks=ended, killed_ranks=killed, ranks_s=seconds)


@pytest.mark.parametrize(
    ("reports", "text"),
    [
        ([], ""),
        ([report(0, 0)], ""),
        ([report(1, 0, 0.2)], "1 rank ended by itself (1 s)"),
        ([report(2, 0, 0.2), report(2, 0, 40.4)], "4 ranks ended by themselves (41 s)"),
        ([report(0, 1)], "1 rank was killed after 60 s (--grace gives more time)"),
        (
            [report(3, 2, 40.4), report(1, 0, 3.0)],
            "4 ranks ended by themselves (41 s), 2 were killed after 60 s (--grace gives more time)",
        ),
        ([report(1, 1, 5.0)], "1 rank ended by itself (5 s), 1 was killed after 60 s (--grace gives more time)"),
    ],
)
def test_the_ends_of_all_nodes_are_summed_up(reports: list[StopReport], text: str) -> None:
    assert stop._ranks_summary(reports, 60.0) == text

"""Choice of groups in a file whose hosts stand in groups."""

from __future__ import annotations

import pytest

from torchfab.core.errors import InventoryError
from torchfab.core.hostfiles import groups
from torchfab.core.hostfiles.dialect import Source

GROUPS = {"gpu": ["a", "b"], "cpu": ["b", "c"], "empty": []}


def source(*names: str) -> Source:
    return Source("", "inventory.ini", names)


def test_without_a_group_each_host_is_taken_once() -> None:
    assert groups.choose(source(), GROUPS) == ["a", "b", "c"]


def test_hosts_follow_the_order_of_the_groups_asked_for() -> None:
    assert groups.choose(source("cpu", "gpu"), GROUPS) == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [("gpus", "has no group 'gpus'; did you mean @gpu?"), ("x9", "has no group 'x9'\n"), ("empty", "has no host")],
)
def test_an_unknown_or_empty_group_is_an_error_that_lists_the_groups(name: str, problem: str) -> None:
    with pytest.raises(InventoryError) as caught:
        groups.choose(source(name), GROUPS)
    assert problem in str(caught.value) + "\n"
    assert "gpu (2), cpu (2)" in str(caught.value)


def test_at_most_eight_groups_are_listed() -> None:
    assert groups.listed({f"g{index}": ["a"] for index in range(10)}).endswith("g7 (1), and 2 more")
    assert groups.listed({}) == "none"

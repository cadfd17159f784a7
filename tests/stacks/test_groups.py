"""Ranks with equal stacks are one group; odd groups come first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.stacks.factories import ALL_GATHER, ALL_REDUCE, C10D, MAIN, TRAIN, library, own, rank
from torchfab.stacks import groups
from torchfab.stacks.model import Frame


def ranks_of(found: Sequence[groups.Group]) -> list[list[int | None]]:
    return [[each.rank for each in group.ranks] for group in found]


def test_odd_rank_comes_first() -> None:
    ranks = [rank(number, ALL_GATHER if number == 13 else ALL_REDUCE) for number in range(512)]
    found = groups.group(ranks)
    assert ranks_of(found) == [[13], [*range(13), *range(14, 512)]]


def test_two_collectives_in_one_function_are_separate_groups() -> None:
    other = (*ALL_REDUCE[:2], own("reduce_loss", 12), *ALL_REDUCE[3:])
    assert ranks_of(groups.group([rank(0, ALL_REDUCE), rank(1, other), rank(2, ALL_REDUCE)])) == [[1], [0, 2]]


def test_frames_inside_a_collective_are_ignored() -> None:
    deeper = (Frame("_wait", C10D, 7), Frame("all_reduce", C10D, 3260), *ALL_REDUCE[1:])
    assert ranks_of(groups.group([rank(0, ALL_REDUCE), rank(1, deeper)])) == [[0, 1]]


def test_line_numbers_of_computing_ranks_count_only_if_exact() -> None:
    here, there = (own("compute", 3), own("train", 9)), (own("compute", 4), own("train", 9))
    assert ranks_of(groups.group([rank(0, here), rank(1, there)])) == [[0, 1]]
    assert ranks_of(groups.group([rank(0, here), rank(1, there)], exact=True)) == [[0], [1]]


def test_stopped_rank_comes_first_even_in_the_common_stack() -> None:
    odd, stopped = rank(1, ALL_GATHER), rank(2, ALL_REDUCE, state="T")
    assert ranks_of(groups.group([rank(0, ALL_REDUCE), odd, stopped, rank(3, ALL_REDUCE)])) == [[2], [1], [0, 3]]


def test_rank_that_waits_for_another_rank_comes_last() -> None:
    assert ranks_of(groups.group([rank(0, ALL_REDUCE), rank(1, (own("load", 3), MAIN))])) == [[1], [0]]


def test_stacks_are_compared_without_class_names() -> None:
    spied = (library("torch/_tensor.py", "Tensor.backward"), own("Trainer.step", 3))
    signalled = (library("torch/_tensor.py", "backward"), own("step", 3))
    assert ranks_of(groups.group([rank(0, spied), rank(1, signalled, by="SIGUSR2")])) == [[0, 1]]


STACKS = st.lists(
    st.lists(st.builds(Frame, st.sampled_from("abc"), st.sampled_from([TRAIN, C10D]), st.integers(0, 2)), max_size=3),
    max_size=12,
)


@given(STACKS, st.booleans())
def test_every_rank_is_in_one_group_and_small_groups_come_first(stacks: list[list[Frame]], exact: bool) -> None:
    ranks = [rank(number, frames) for number, frames in enumerate(stacks)]
    found = groups.group(ranks, exact)
    assert sorted(each.rank or 0 for group in found for each in group.ranks) == list(range(len(ranks)))
    assert [len(group.ranks) for group in found] == sorted(len(group.ranks) for group in found)


@given(STACKS, st.randoms())
def test_groups_do_not_depend_on_the_order_of_answers(stacks: list[list[Frame]], chance: Any) -> None:
    ranks = [rank(number, frames) for number, frames in enumerate(stacks)]
    shuffled = list(ranks)
    chance.shuffle(shuffled)
    assert ranks_of(groups.group(shuffled)) == ranks_of(groups.group(ranks))

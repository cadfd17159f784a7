"""Verdicts on collectives: the issue's faults by hand, and generated histories with one injected fault."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.collectives.histories import call, line, rank, snapshot, tensors, waiting, world
from torchfab.collectives.align import Kind, find_verdicts
from torchfab.collectives.model import Call, Group, RankHistory, Snapshot

OPERATIONS = ("all_reduce", "broadcast", "all_gather", "reduce_scatter", "barrier")


def words(ranks: dict[int, RankHistory]) -> list[str]:
    """Return the sentences about some ranks."""
    return [verdict.words for verdict in find_verdicts(snapshot(ranks))]


def many(size: int, last: int) -> dict[int, RankHistory]:
    """Return ranks that wait in the same all_reduce for 90 s."""
    calls = [*(call(number) for number in range(1, last)), call(last, waits_s=90.0)]
    return {each: rank(each, calls, [world(size)], line(30)) for each in range(size)}


# ---- each fault


def test_ranks_that_all_wait_in_the_same_call_are_not_blamed() -> None:
    assert words(many(4, 6)) == []


def test_another_operation_is_named_with_shapes_and_lines_of_both() -> None:
    ranks = many(16, 6)
    gather = replace(call(6, "all_gather", waits_s=90.0, at=31), inputs=tensors(2, 8))
    ranks[1] = replace(ranks[1], calls=(*ranks[1].calls[:-1], gather))
    (found,) = words(ranks)
    assert found == (
        "rank 1 called all_gather no. 6 (float32[2, 8], train.py:31); "
        "15 others all_reduce no. 6 (float32[4], train.py:30)"
    )


def test_other_sizes_are_named() -> None:
    ranks = many(4, 6)
    ranks[3] = replace(ranks[3], calls=(*ranks[3].calls[:-1], replace(ranks[3].calls[-1], inputs=tensors(5))))
    (verdict,) = find_verdicts(snapshot(ranks))
    assert (verdict.kind, verdict.ranks, verdict.hosts) == (Kind.SIZE, (3,), ("node3",))
    assert verdict.words.startswith("rank 3 called all_reduce no. 6 (float32[5], train.py:30); 3 others all_reduce no.")


def test_other_types_of_equal_size_are_named() -> None:
    ranks = many(3, 2)
    half = replace(ranks[2].calls[-1], inputs=tensors(4, of="float16"))
    ranks[2] = replace(ranks[2], calls=(*ranks[2].calls[:-1], half))
    assert words(ranks)[0].startswith("rank 2 called all_reduce no. 2 (float16[4], ")


@pytest.mark.parametrize("operation", ["gather", "scatter", "all_to_all"])
def test_operations_with_sizes_of_their_own_on_each_rank_are_not_compared(operation: str) -> None:
    ranks = {
        each: rank(each, [replace(call(1, operation, waits_s=9.0), inputs=tensors(each))], [world(2)])
        for each in range(2)
    }
    assert words(ranks) == []


def test_a_rank_that_never_comes_is_named_with_its_line() -> None:
    ranks = many(4, 3)
    ranks[2] = rank(2, ranks[2].calls[:-1], [world(4)], line(55, "load"))
    (found,) = words(ranks)
    assert found == (
        "rank 2 has not reached all_reduce no. 3, at train.py:55 in load; "
        "ranks 0-1,3 wait there (float32[4], train.py:30) for 1 min 30 s"
    )


def test_nothing_is_said_of_a_rank_that_is_late_by_less_than_a_second() -> None:
    ranks = {each: waiting(history, 3, 0.9) for each, history in many(4, 3).items()}
    ranks[2] = rank(2, ranks[2].calls[:-1], [world(4)])
    assert words(ranks) == []


def test_a_rank_that_is_several_collectives_behind_is_named_with_the_distance() -> None:
    ranks = {0: rank(0, [*(call(n) for n in range(1, 9)), call(9, waits_s=5.0), call(10, waits_s=4.0)], [world(2)])}
    ranks[1] = rank(1, [call(n) for n in range(1, 7)], [world(2)], line(7))
    assert words(ranks)[0].startswith("rank 1 is 4 collectives behind: at no. 6, at train.py:7; rank 0 waits in ")


def test_a_rank_that_has_ended_is_named_at_once() -> None:
    ranks = {each: waiting(history, 3, 0.2) for each, history in many(3, 3).items()}
    ranks[1] = RankHistory(1, "node1", has_ended=True)
    assert words(ranks) == ["rank 1 has ended, and ranks 0,2 wait in all_reduce no. 3 (float32[4], train.py:30)"]


def test_a_silent_rank_is_not_blamed() -> None:
    ranks = many(3, 3)
    del ranks[1]
    assert find_verdicts(Snapshot(ranks, {1: "no answer"})) == ()


def two_groups() -> dict[int, RankHistory]:
    """Return two ranks, each of which waits for the other in another group."""
    groups = [Group("1", "tp", (0, 1)), Group("2", "", (0, 1))]
    return {
        0: rank(0, [call(1, group="1", waits_s=8.0, at=20)], groups),
        1: rank(1, [call(1, "broadcast", group="2", waits_s=8.0, at=40)], groups),
    }


def test_ranks_that_wait_for_each_other_in_two_groups_are_named() -> None:
    (found,) = words(two_groups())
    assert found == (
        "ranks 0-1 wait for each other in 2 groups: "
        "rank 0 in all_reduce no. 1 of group tp (float32[4], train.py:20) for rank 1, "
        "rank 1 in broadcast no. 1 of the group of ranks 0-1 (float32[4], train.py:40) for rank 0"
    )


def test_a_victim_in_another_group_is_not_blamed_but_the_cause_is() -> None:
    groups = [world(3), Group("1", "tp", (1, 2))]
    ranks = {
        0: rank(0, [call(1, waits_s=8.0)], groups[:1]),
        1: rank(1, [call(1, group="1", waits_s=9.0)], groups),
        2: rank(2, [], groups, line(77)),
    }
    found = find_verdicts(snapshot(ranks))
    assert {verdict.ranks for verdict in found} == {(2,)}


def test_a_rank_that_has_passed_the_call_is_not_blamed() -> None:
    ranks = many(3, 70)
    ranks[1] = rank(1, [call(number) for number in range(71, 135)], [world(3)])  # only the latest are kept
    assert words(ranks) == []


# ---- generated histories


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[Call]]:
    """Return the number of ranks, and the calls that all of them make."""
    size, count = draw(st.integers(2, 12)), draw(st.integers(2, 20))
    operations = draw(st.lists(st.sampled_from(OPERATIONS), min_size=count, max_size=count))
    return size, [call(number, operation) for number, operation in enumerate(operations, 1)]


@given(histories(), st.data())
def test_a_snapshot_of_a_healthy_job_has_no_verdict(history: tuple[int, list[Call]], data: st.DataObject) -> None:
    size, calls = history
    ranks = {}
    slowest = data.draw(st.integers(0, len(calls) - 1))
    for each in range(size):  # each rank is in the slowest one's next call, or on its way there
        begun = data.draw(st.booleans())
        made = calls[: slowest + begun]
        ranks[each] = rank(each, made, [world(size)])
        if begun:
            ranks[each] = waiting(ranks[each], made[-1].number, data.draw(st.floats(0.0, 0.99)))
    assert words(ranks) == []


@given(histories(), st.data())
def test_one_injected_fault_is_named_with_its_rank_and_kind(
    history: tuple[int, list[Call]], data: st.DataObject
) -> None:
    size, calls = history
    size = max(3, size)  # of two that differ, either may be wrong
    odd, kind = data.draw(st.integers(0, size - 1)), data.draw(st.sampled_from([Kind.ORDER, Kind.SIZE, Kind.MISSING]))
    number = data.draw(st.integers(1, len(calls)))
    healthy = [waiting(rank(each, calls, [world(size)]), number, 60.0) for each in range(size)]
    ranks = dict(enumerate(healthy))
    ranks[odd] = _broken(ranks[odd], number, kind)
    found = find_verdicts(snapshot(ranks))
    if kind is Kind.SIZE and calls[number - 1].operation == "barrier":
        assert found == ()
    else:
        assert [(verdict.kind, verdict.ranks, verdict.number) for verdict in found] == [(kind, (odd,), number)]


def _broken(history: RankHistory, number: int, kind: Kind) -> RankHistory:
    *before, last = history.calls
    assert last.number == number
    if kind is Kind.ORDER:
        return replace(history, calls=(*before, replace(last, operation="all_to_all")))
    if kind is Kind.SIZE:
        return replace(history, calls=(*before, replace(last, inputs=tensors(3))))
    return replace(history, calls=tuple(before))

"""The number of ranks on each node, by `--nproc-per-node`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.factories import folder, make_facts, make_job, make_nodes
from torchfab.core.errors import UsageError
from torchfab.core.specs import Facts, Job
from torchfab.launchers import nproc

NODES = make_nodes({"host": "a", "slots": 3}, {"host": "b", "gpus": ("2", "5")}, "c", "d")


def job_with(value: str, **values: Any) -> Job:
    return make_job(options={"nproc_per_node": value}, **values)


@pytest.mark.parametrize("text", ["auto", "gpu", "1", "1024"])
def test_valid_values_are_accepted(text: str) -> None:
    assert nproc.check(text) == text


@pytest.mark.parametrize("text", ["0", "1025", "-1", "two", "", "٣"])
def test_other_values_are_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="--nproc-per-node must be auto, gpu or a number from 1 to 1024, got "):
        nproc.check(text)


@pytest.mark.parametrize(
    ("value", "counts", "note"),
    [
        ("auto", (3, 2, 8, 2), "uneven: 2 nodes with 2, 1 node with 3, 1 node with 8"),
        ("4", (4, 4, 4, 4), "4 per node"),
    ],
)
def test_ranks_come_from_the_flag_or_slots_or_gpus_or_are_two(value: str, counts: tuple[int, ...], note: str) -> None:
    layout = nproc.lay_out(job_with(value), NODES, make_facts(8, 8, 8, 0))
    assert (layout.counts, layout.note) == (counts, note)


def test_gpu_requires_a_gpu_on_every_node() -> None:
    assert nproc.lay_out(job_with("gpu"), NODES[1:3], make_facts(0, 4)).counts == (2, 4)
    with pytest.raises(UsageError, match="--nproc-per-node gpu: d has no GPU"):
        nproc.lay_out(job_with("gpu"), NODES[2:], make_facts(4, 0))


@pytest.mark.parametrize(
    ("value", "nodes", "counts"), [("4", NODES, (4, 4, 4, 4)), ("auto", NODES[:2], (3, 2)), ("auto", NODES, None)]
)
def test_facts_are_known_if_all_counts_are(value: str, nodes: Any, counts: tuple[int, ...] | None) -> None:
    found = nproc.facts_from_flags(job_with(value, port=5001), nodes)
    assert (None if found is None else tuple(fact.gpus for fact in found)) == counts


def test_facts_are_unknown_if_the_gpus_must_be_counted() -> None:
    assert nproc.facts_from_flags(job_with("gpu", port=5001), NODES[:2]) is None
    assert nproc.facts_from_flags(job_with("1", port=5001), NODES[:1]) == (Facts(folder(0), gpus=1, port=5001),)

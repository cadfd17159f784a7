"""One machine under two names."""

from __future__ import annotations

from typing import Any

import pytest

from tests.doctor.factories import make_node, only
from tests.factories import make_facts, make_node_facts, make_nodes
from torchfab.core.errors import InventoryError
from torchfab.doctor import ERROR, same_machine
from torchfab.transport.messages.launch import NodeFacts

NODES = make_nodes("node1", "10.0.0.1", "node2", {"host": "localhost"})


def machine(name: str, port: int | None = 22) -> dict[str, Any]:
    return {"id": name, "ssh_port": port}


def answers(*identities: dict[str, Any] | None) -> dict[int, NodeFacts]:
    facts = make_facts(0)[0]
    return {rank: make_node_facts(facts, machine=identity) for rank, identity in enumerate(identities)}


def test_two_names_of_a_machine_are_refused_with_both_lines() -> None:
    with pytest.raises(InventoryError) as caught:
        same_machine.check(NODES, answers(machine("a"), machine("a"), machine("b"), machine("a", None)))
    assert str(caught.value) == (
        "node1 (hosts:1), 10.0.0.1 (hosts:2) and localhost (hosts:4) are one machine\n"
        "  fix: remove one of the lines; for more ranks on that machine, write slots=N"
    )


@pytest.mark.parametrize(
    "identities",
    [
        [machine("a"), machine("b"), machine("c"), machine("d", None)],
        [machine("a", 2201), machine("a", 2202), machine("b"), machine("a", None)],
        [None, None, None, None],
    ],
    ids=["others", "ports of one machine", "no answer"],
)
def test_other_machines_and_other_ports_are_other_nodes(identities: list[dict[str, Any] | None]) -> None:
    same_machine.check(NODES, answers(*identities))


def test_the_number_of_further_machines_is_given() -> None:
    with pytest.raises(InventoryError, match="are one machine; 1 more machines have two names"):
        same_machine.check(NODES, answers(machine("a"), machine("a"), machine("b"), machine("b")))


def test_doctor_finds_it() -> None:
    nodes = [
        make_node(rank, {"machine": {"identity": machine("a" if rank in (1, 2) else str(rank))}}) for rank in range(4)
    ]
    finding = only(nodes)
    assert (finding.kind, finding.severity, finding.hosts) == ("same-machine", ERROR, ("node2", "node3"))
    assert finding.fix == same_machine.FIX

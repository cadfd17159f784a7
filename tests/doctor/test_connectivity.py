"""Routes between nodes: the interfaces that NCCL and gloo select, their MTU, and addresses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.doctor.factories import REQUIREMENTS, find, four_nodes, make_node, only
from torchfab.doctor.connectivity import select_interfaces


@pytest.mark.parametrize(
    ("variable", "given", "names"),
    [
        ("NCCL_SOCKET_IFNAME", "eth", ["eth0", "eth1"]),
        ("NCCL_SOCKET_IFNAME", "=eth0", ["eth0"]),
        ("NCCL_SOCKET_IFNAME", "=eth", []),
        ("NCCL_SOCKET_IFNAME", "^lo,docker", ["eth0", "eth1"]),
        ("NCCL_SOCKET_IFNAME", "^=eth0", ["lo", "eth1"]),
        ("GLOO_SOCKET_IFNAME", "eth", []),
        ("GLOO_SOCKET_IFNAME", "eth1,ib0", ["eth1"]),
    ],
)
def test_interfaces_are_selected_as_nccl_and_gloo_do(variable: str, given: str, names: list[str]) -> None:
    assert select_interfaces(variable, given, ["lo", "eth0", "eth1"]) == names


def test_a_variable_without_a_matching_interface_is_an_error() -> None:
    nodes = four_nodes(
        make_node(1, {"interfaces": [{"name": "ens3", "up": True, "mtu": 1500, "addresses": ["10.0.0.2"]}]})
    )
    finding = only(nodes, replace(REQUIREMENTS, env={"NCCL_SOCKET_IFNAME": "eth0"}))
    assert (finding.kind, finding.hosts, finding.found) == ("interface-missing", ("node2",), "ens3")


def test_a_forwarded_variable_overrides_that_of_the_node() -> None:
    nodes = [make_node(rank, {"environment": {"GLOO_SOCKET_IFNAME": "ib0"}}) for rank in range(2)]
    assert only(nodes).kind == "interface-missing"
    assert find(nodes, replace(REQUIREMENTS, env={"GLOO_SOCKET_IFNAME": "eth0"})) == ()


def test_a_differing_mtu_is_found() -> None:
    interfaces = [{"name": "eth0", "up": True, "mtu": 9000, "addresses": ["10.0.0.2"]}]
    finding = only(four_nodes(make_node(1, {"interfaces": interfaces})))
    assert (finding.kind, finding.expected, finding.found) == ("mtu-differs", "1500", "9000")


def test_nodes_of_one_machine_may_use_loopback_addresses() -> None:
    ours = {"addresses": ["127.77.1.1"], "source": "127.0.0.1", "connection": {"address": "127.77.1.1"}}
    name = {"machine": {"network": "0 net:[1]", "own_addresses": ["127.0.1.1"]}}
    nodes = [make_node(rank, name, ours) for rank in range(2)]
    nodes = [replace(each, node=replace(each.node, address="127.77.1.1")) for each in nodes]
    assert find(nodes) == ()

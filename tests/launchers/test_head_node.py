"""What the launchers with a head share: names of nodes, environments, and how the head reaches the relays."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from tests.factories import JOB_ID, folder, make_facts, make_job, make_nodes
from torchfab.core.errors import UsageError
from torchfab.launchers import head_node
from torchfab.launchers.rank_layout import Layout, lay_out


def layout_of(*hosts: Any, **values: Any) -> Layout:
    nodes = make_nodes(*hosts)
    return lay_out(make_job(**values), nodes, make_facts(*[1] * len(nodes)), [1] * len(nodes))


def test_nodes_are_named_by_the_addresses_between_them() -> None:
    named = layout_of("gw", {"host": "b", "address": "10.0.0.2"}, "c", master_addr="10.0.0.1")
    assert head_node.node_names(named) == ("10.0.0.1", "10.0.0.2", "c")


def test_two_nodes_of_one_address_are_an_error_with_the_line() -> None:
    with pytest.raises(UsageError, match="this launcher identifies a node by its address alone, and two nodes have b"):
        head_node.node_names(layout_of("a", "b", {"host": "b", "port": 2222}))


@pytest.mark.parametrize(
    ("python", "expected"),
    [("python3", "python3"), ("/v/python", "/v/python"), (".venv/python", "/project/.venv/python")],
)
def test_the_interpreter_is_absolute_if_it_has_a_folder(python: str, expected: str) -> None:
    assert head_node.absolute_python(make_job(python=python)) == expected


def test_a_node_has_the_rendezvous_in_its_environment() -> None:
    layout = layout_of("a", "b", env={"MASTER_ADDR": "elsewhere", "A": "1"})
    assert head_node.node_environment(layout, layout.placements[1]) == {
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "A": "1",
        "MASTER_ADDR": "a",
        "MASTER_PORT": "29400",
        "LOCAL_WORLD_SIZE": "1",
        "TORCHFAB_JOB_ID": JOB_ID,
        "TORCHFAB_NODE_RANK": "1",
    }


def test_a_head_above_relays_has_no_variables_of_the_job_but_pythons() -> None:
    found = head_node.head_environment(make_job(env={"PYTHONPATH": "/lib", "NCCL_DEBUG": "INFO"}), MORE="x")
    assert set(found) == {"PYTHONUNBUFFERED", "PYTHONPATH", "MORE", "TORCHFAB_JOB_ID", "TORCHFAB_NODE_RANK"}


@pytest.mark.parametrize("relay_here", [True, False])
def test_the_head_reaches_each_relay_by_ssh_and_that_of_node_0_directly(relay_here: bool) -> None:
    node_1 = {"host": "b", "user": "ann", "port": 2222, "address": "10.0.0.2"}
    files = head_node.head_files(layout_of("a", node_1, ssh_options=("-F", "cfg")), relay_here, fail_fast=True)
    document = json.loads(files["nodes.json"])
    assert document["fail_fast"] is True
    own, other = document["nodes"].values()
    assert own["ssh"] == []
    assert bool(own["gate"]) is relay_here
    assert other["ssh"][-9:] == ["cfg", "-o", "HostName=10.0.0.2", "-p", "2222", "-l", "ann", "--", "b"]
    assert other["gate"][-2:] == [f"{folder(1)}/agent/relay.py", "deliver"]


def test_the_ssh_of_the_head_is_the_first_on_its_path() -> None:
    layout = layout_of("a", "b")
    folder_of_head = head_node.head_folder(layout)
    text = head_node.head_files(layout, relay_here=True, fail_fast=True)["bin/ssh"]
    assert shlex.split(text.splitlines()[1])[1:] == [
        *("/venv/bin/python", "-I", "-S", f"{folder_of_head}/rsh.py"),
        "$@",
    ]
    assert head_node.program_folder(folder_of_head) == f"{folder(0)}/head/bin"

"""Inventories of ansible: groups, ranges, and which variable of a host wins."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from tests.core.hostfiles.factories import error, hosts, read
from tests.support import fuzzed

INI = """
bastion                              ; outside of all groups

[gpu]
gpu-[01:02] ansible_user=train slots=8
gpu-07.dc:2200 ansible_host=10.1.0.7

[cpu]
cpu[a:b]

[cluster:children]
gpu
cpu

[cluster:vars]
ansible_user = ops
ansible_ssh_private_key_file=~/.ssh/id  # ours

[all:vars]
ansible_port=2222
"""
YAML = """
all:
  vars: {ansible_port: 2222}
  children:
    cluster:
      vars: {ansible_user: ops}
      children:
        gpu:
          hosts:
            gpu-[01:02]: {ansible_user: train, slots: 8}
            gpu-07.dc: {ansible_port: 2200, ansible_host: 10.1.0.7}
        cpu:
          hosts:
            cpu[a:b]:
    ungrouped:
      hosts:
        bastion:
"""
LISTING = """
{"_meta": {"hostvars": {
  "gpu-01": {"ansible_user": "train", "slots": 8, "ansible_port": 2222},
  "gpu-02": {"ansible_user": "train", "slots": 8, "ansible_port": 2222},
  "gpu-07.dc": {"ansible_port": 2200, "ansible_host": "10.1.0.7", "ansible_user": "ops"},
  "cpua": {"ansible_user": "ops", "ansible_port": 2222}, "cpub": {"ansible_user": "ops", "ansible_port": 2222},
  "bastion": {"ansible_port": 2222}}},
 "all": {"children": ["ungrouped", "cluster"]}, "cluster": {"children": ["gpu", "cpu"]},
 "gpu": {"hosts": ["gpu-01", "gpu-02", "gpu-07.dc"]}, "cpu": {"hosts": ["cpua", "cpub"]},
 "ungrouped": {"hosts": ["bastion"]}}
"""
BASTION = {"host": "bastion", "port": 2222}
GPU = [
    {"host": "gpu-01", "user": "train", "port": 2222, "slots": 8},
    {"host": "gpu-02", "user": "train", "port": 2222, "slots": 8},
    {"host": "10.1.0.7", "user": "ops", "port": 2200},
]
CPU = [{"host": host, "user": "ops", "port": 2222} for host in ("cpua", "cpub")]
TEXTS = pytest.mark.parametrize("text", [INI, YAML, LISTING], ids=["INI", "YAML", "listing"])


@TEXTS
@pytest.mark.parametrize(("group", "expected"), [("gpu", GPU), ("cpu", CPU), ("cluster", GPU + CPU)])
def test_a_group_has_its_hosts_and_those_of_its_children(text: str, group: str, expected: list[object]) -> None:
    assert hosts(read(text, groups=(group,))) == expected


@TEXTS
def test_without_a_group_all_hosts_are_read(text: str) -> None:
    found = read(text)
    assert sorted(map(str, hosts(found))) == sorted(map(str, [BASTION, *GPU, *CPU]))
    assert set(found.groups) == {"gpu", "cpu", "cluster"}


@TEXTS
def test_an_unknown_group_is_an_error_that_names_the_nearest(text: str) -> None:
    first = error(text, groups=("gpus",))
    assert first.startswith("hosts: has no group 'gpus'; did you mean @gpu?\n  fix: its groups: ")
    assert "gpu (3)" in first


def test_two_groups_have_each_host_once() -> None:
    assert hosts(read("[a]\nx\ny\n[b]\ny\nz\n", groups=("b", "a"))) == ["y", "z", "x"]


def test_what_says_how_to_log_in_is_left_out_with_a_note() -> None:
    assert read(INI).inventory.notes == (
        "hosts: ansible_ssh_private_key_file is left out: put it into ssh's configuration",
    )


def test_a_local_connection_needs_no_ssh() -> None:
    (node,) = read("me ansible_connection=local ansible_user=x ansible_port=22\n").inventory.nodes
    assert node.is_local


def test_ranges_have_steps_and_zeros() -> None:
    assert hosts(read("n[08:12:2]x[a:b]\n", "ansible")) == [f"n{n}x{x}" for n in ("08", "10", "12") for x in "ab"]


def test_ipv6_hosts_get_their_brackets() -> None:
    assert hosts(read("[gpu]\na ansible_host=fd00::1\n")) == ["fd00::1"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a]\nx ansible_host={{ ip }}\n", "hosts:2: a variable of x is a template: ansible_host={{ ip }}"),
        ("[a]\nx ansible_host='{{ ip }}'\n", "hosts:2: ansible_host={{ ip }} of x is a template"),
        ("[gpu]\nx\n[a:children]\ngpus\n", "hosts:4: the group a contains gpus, which does not exist"),
        ("[a:children]\nb\n[b:children]\na\n", "hosts:1: the group 'a' contains itself"),
        ("[a]\nx y\n", "hosts:2: 'y' after the host x"),
        ("[a]\nn[0:99999]\n", "hosts:2: n[0:99999] has more than 10000 hosts"),
        ("[a:vars]\nx\n", "hosts:2: 'x' in a section of variables has no ="),
        ("[a]\nx ansible_port=y\n", "hosts:2: 'y' is not a port"),
        ("gpu:\n  hosts:\n    a\n    b\n", "hosts:1: an inventory of ansible in which hosts of 'gpu' is not a mapping"),
        ("gpu:\n  hosts:\n  a:\n", "hosts: a JSON or YAML document that lists no hosts"),
        ("gpu:\n  hosts: {\n", "hosts:3: not valid YAML: "),
        ("plugin: aws_ec2\nregions: x\n", "hosts: a dynamic inventory of ansible, not a hosts file"),
    ],
)
def test_an_error_names_the_line_of_the_inventory(text: str, problem: str) -> None:
    assert error(text).startswith(problem)


def test_groups_nested_without_end_through_an_alias_are_refused() -> None:
    text = "a: &a\n  children:\n    b: &b\n      children:\n        c: *a\n"
    assert error(text).startswith("hosts:")


@fuzzed(st.integers(2, 12))
def test_many_aliases_of_aliases_are_refused_in_time(depth: int) -> None:
    lines = ["x0: &x0 [a, a, a, a, a, a, a, a, a]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, depth)]
    assert error("\n".join(lines)).startswith("hosts: ")

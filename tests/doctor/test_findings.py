"""One sick node among healthy ones: what is found, about whom, and how bad it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.doctor.factories import GIB, GPU, WANTED, found, four, only, seen
from torchfab.core.errors import HostError
from torchfab.doctor import ERROR, NOTE, WARNING, Clock, Finding
from torchfab.doctor.connectivity import chosen
from torchfab.doctor.finding import merged, odd_ones

LOW = {"free": GIB // 2}
NETWORK = {"machine": {"network": "0 net:[1]"}}

# What is wrong with node2, and what must be found: kind, severity, a part of what is said.
SICK: dict[str, tuple[Mapping[str, Any], str, str, str]] = {
    "no interpreter": ({"python": {"problem": "there is no x"}}, "python-missing", ERROR, "there is no x"),
    "no torch": ({"python": {"torch": "", "cuda": "", "nccl": ""}}, "torch-missing", ERROR, "no module torch"),
    "another torch": ({"python": {"torch": "2.8.0"}}, "torch-differs", ERROR, "another version"),
    "another CUDA": ({"python": {"cuda": "12.4"}}, "cuda-differs", ERROR, "another CUDA"),
    "another NCCL": ({"python": {"nccl": "2.21.5"}}, "nccl-differs", ERROR, "NCCL is another version"),
    "another python": ({"python": {"python": "3.12.0"}}, "python-differs", WARNING, "python is another"),
    "another driver": ({"gpus": {"driver": "550.1"}}, "driver-differs", WARNING, "driver is another"),
    "a GPU less": ({"gpus": {"devices": 1, "gpus": [GPU]}}, "gpus-differ", ERROR, "GPUs are not those"),
    "MIG": ({"gpus": {"gpus": [GPU, {**GPU, "mig": True}]}}, "gpus-differ", ERROR, "GPUs are not those"),
    "no tmux": ({"tmux": {"version": "", "problem": "tmux is not installed"}}, "tmux-missing", ERROR, "not installed"),
    "an old tmux": ({"tmux": {"version": "2.9"}}, "tmux-old", ERROR, "too old"),
    "no workdir": ({"places": {"workdir": {"exists": False}}}, "workdir-missing", ERROR, "/project does not exist"),
    "a closed workdir": ({"places": {"workdir": {"enterable": False}}}, "workdir-missing", ERROR, "cannot be entered"),
    "a full disk": (
        {"places": {"node_dir": {"problem": "No space left on device", "free": 0}}},
        *("disk-not-writable", ERROR, "/project/.torchfab (logs of jobs) cannot be written: No space left"),
    ),
    "a nearly full disk": ({"places": {"tmp": LOW}}, "disk-nearly-full", WARNING, "/tmp (temporary files) is nearly"),
    "no inodes": ({"places": {"tmp": {"free_files": 3}}}, "disk-nearly-full", WARNING, "hardly any inodes"),
    "a small shm": ({"places": {"shm": {"free": 2**26}}}, "shm-small", WARNING, "/dev/shm is small"),
    "few files": ({"limits": {"files": 256}}, "limit-low", WARNING, "ulimit -n"),
    "few processes": ({"limits": {"processes": 100}}, "limit-low", WARNING, "ulimit -u"),
    "locked memory": ({"limits": {"locked": 65536}, "machine": {"infiniband": True}}, "limit-low", ERROR, "ulimit -l"),
    "other code": ({"code": {"digest": "0"}}, "code-differs", ERROR, "code in /project is not that of the other nodes"),
    "a part that fails": ({"limits": {"failed": "OSError: x"}}, "not-looked-at", WARNING, "limits could not be looked"),
    "a name on loopback": ({"machine": {"own_addresses": ["127.0.1.1"]}}, "own-name-loopback", WARNING, "gloo listens"),
    "a lost GPU": ({"gpus": {"devices": 3}}, "gpu-lost", ERROR, "kernel lists more"),
    "a broken driver": (
        {"gpus": {"problem": "Driver/library version mismatch", "gpus": []}},
        "gpu-driver",
        ERROR,
        "mismatch",
    ),
    "a leftover": (
        {"jobs": [{"job_id": "gpt2-12ab34cd", "processes": 2, "supervised": False, "example": "7 (python)"}]},
        *("lingering", WARNING, "2 processes of the job gpt2 left over there"),
    ),
    "a running job": (
        {"jobs": [{"job_id": "gpt2-12ab34cd", "processes": 1, "supervised": True, "example": "7 (python)"}]},
        *("job-running", NOTE, "the job gpt2 runs there"),
    ),
}
WAYS: dict[str, tuple[Mapping[str, Any], str, str, str]] = {
    "timeout": ({"connection": {"outcome": "timeout"}}, "connect-timeout", ERROR, "port 41000, times out"),
    "refused": ({"connection": {"outcome": "refused"}}, "connect-refused", ERROR, "(10.0.0.1) port 41000, is refused"),
    "no route": (
        {"connection": {"outcome": "rejected", "why": "No route to host"}},
        *("connect-rejected", ERROR, "on the way: No route to host"),
    ),
    "failed": (
        {"connection": {"outcome": "failed", "why": "Protocol error"}},
        *("connect-failed", ERROR, "port 41000, fails: Protocol error"),
    ),
    "stranger": ({"connection": {"outcome": "stranger"}}, "connect-stranger", ERROR, "reaches another machine"),
    "unknown name": ({"addresses": [], "connection": None}, "name-unknown", ERROR, "node1, does not resolve"),
    "loopback": (
        {"addresses": ["127.0.1.1"], "source": "127.0.0.1", "connection": {"outcome": "refused"}},
        *("name-loopback", ERROR, "leads back to the node itself"),
    ),
    "another address": ({"addresses": ["10.9.9.9"]}, "name-differs", WARNING, "resolves to something else"),
    "its own disk": ({"sees": {"workdir": False}}, "workdir-not-shared", WARNING, "is not as on the other nodes"),
}


def test_nothing_is_found_on_healthy_nodes() -> None:
    assert found([seen(rank) for rank in range(4)]) == ()


@pytest.mark.parametrize("case", SICK)
def test_what_is_wrong_with_one_node_is_found_there_and_nowhere_else(case: str) -> None:
    changes, kind, severity, words = SICK[case]
    finding = only(four(seen(1, changes)))
    assert (finding.kind, finding.severity, finding.hosts) == (kind, severity, ("node2",))
    assert words in finding.what
    assert finding.fix or severity == NOTE


@pytest.mark.parametrize("case", WAYS)
def test_what_is_wrong_on_the_way_to_node_0_is_found(case: str) -> None:
    changes, kind, severity, words = WAYS[case]
    finding = only(four(seen(1, None, changes)))
    assert (finding.kind, finding.severity, finding.hosts) == (kind, severity, ("node2",))
    assert words in finding.what
    assert finding.fix


def test_what_most_nodes_have_is_expected_and_what_the_odd_one_has_is_found() -> None:
    finding = only(four(seen(0, {"python": {"torch": "2.8.0"}})))
    assert (finding.hosts, finding.expected, finding.found) == (("node1",), "2.9.0", "2.8.0")


def test_of_two_nodes_that_differ_node_0_is_right() -> None:
    finding = only([seen(0), seen(1, {"python": {"torch": "2.8.0"}})])
    assert (finding.hosts, finding.expected) == (("node2",), "2.9.0")


def test_a_missing_torch_is_no_other_version_as_well() -> None:
    assert only(four(seen(1, SICK["no torch"][0]))).kind == "torch-missing"


def test_a_node_that_does_not_answer_is_a_finding_and_the_others_are_looked_at() -> None:
    lost = replace(
        seen(3), probe={}, connectivity={}, clock=None, connect_s=None, error=HostError("refused", "start sshd")
    )
    nodes = four(lost)
    nodes[2] = seen(2, SICK["another torch"][0])
    every = found(nodes)
    assert [(each.kind, each.hosts) for each in every] == [("unreachable", ("node4",)), ("torch-differs", ("node3",))]
    assert every[0].fix == "start sshd"


def test_a_node_that_could_be_asked_and_gave_no_answer_is_an_error() -> None:
    silent = replace(
        seen(1), probe={}, connectivity={}, clock=None, error=HostError("no answer within 30 s", "see its load")
    )
    finding = only(four(silent))
    assert (finding.kind, finding.severity, finding.hosts) == ("not-looked-at", ERROR, ("node2",))


def test_a_slow_login_is_not_put_down_to_start_up_files_which_run_after_it() -> None:
    slow = only(four(replace(seen(2), connect_s=7.0)))
    assert (slow.kind, slow.found) == ("ssh-slow", "7.0 s")
    assert "rc" not in slow.fix


def test_without_node_0_nothing_is_said_about_the_way_to_it() -> None:
    nodes = [replace(seen(0), probe={}, connectivity={}, error=HostError("refused"))]
    nodes += [seen(rank, None, {"connection": None}) for rank in (1, 2)]
    assert only(nodes).hosts == ("node1",)


def test_a_taken_port_is_found_on_node_0() -> None:
    finding = only(four(seen(0, {"port": {"port": 5001, "problem": "port 5001 is in use"}})))
    assert (finding.kind, finding.hosts) == ("port-taken", ("node1",))


def test_nodes_of_one_machine_may_use_loopback_addresses() -> None:
    ours = {"addresses": ["127.77.1.1"], "source": "127.0.0.1", "connection": {"address": "127.77.1.1"}}
    name = {"machine": {"network": "0 net:[1]", "own_addresses": ["127.0.1.1"]}}
    nodes = [seen(rank, name, ours) for rank in range(2)]
    nodes = [replace(each, node=replace(each.node, address="127.77.1.1")) for each in nodes]
    assert found(nodes) == ()


def test_files_that_differ_are_named() -> None:
    files = {"train.py": "1", "data.py": "2", "model.py": "3"}
    other = seen(1, SICK["other code"][0], {"files": {**files, "train.py": "9", "data.py": ""}})
    nodes = four(other)
    nodes[0] = seen(0, None, {"files": files})
    assert only(nodes).what.endswith("data.py is missing, train.py")


def test_code_that_is_not_that_of_this_machine_is_a_warning_about_all() -> None:
    finding = only([seen(0), seen(1)], replace(WANTED, digest="other"))
    assert (finding.kind, finding.severity, finding.hosts) == ("code-not-ours", WARNING, ("node1", "node2"))


# ---- clocks


def clocks(*ahead_s: float, within_s: float = 0.001) -> list[Finding]:
    return list(found([replace(seen(rank), clock=Clock(ahead, within_s)) for rank, ahead in enumerate(ahead_s)]))


def test_a_clock_that_is_off_is_measured_from_the_middle_of_all() -> None:
    (finding,) = clocks(0.0, 2.0, 0.01)
    assert (finding.kind, finding.severity, finding.hosts) == ("clock-skew", WARNING, ("node2",))
    assert finding.found == "+2000 ms (known to 1.0 ms)"


def test_when_this_machine_is_off_and_the_nodes_agree_nothing_is_found() -> None:
    assert clocks(60.0, 60.001, 60.002) == []


def test_a_clock_that_torchrun_cannot_live_with_is_an_error() -> None:
    (finding,) = clocks(0.0, -20.0, 0.0)
    assert (finding.severity, finding.found) == (ERROR, "-20000 ms (known to 1.0 ms)")


def test_what_the_round_trip_explains_is_no_skew() -> None:
    assert clocks(0.0, 0.9, 0.0, within_s=0.5) == []


# ---- interfaces


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
def test_interfaces_are_chosen_as_nccl_and_gloo_do(variable: str, given: str, names: list[str]) -> None:
    assert chosen(variable, given, ["lo", "eth0", "eth1"]) == names


def test_a_variable_that_names_no_interface_is_an_error_where_there_is_none() -> None:
    nodes = four(seen(1, {"interfaces": [{"name": "ens3", "up": True, "mtu": 1500, "addresses": ["10.0.0.2"]}]}))
    finding = only(nodes, replace(WANTED, env={"NCCL_SOCKET_IFNAME": "eth0"}))
    assert (finding.kind, finding.hosts, finding.found) == ("interface-missing", ("node2",), "ens3")


def test_the_value_that_travels_counts_more_than_that_of_the_node() -> None:
    nodes = [seen(rank, {"environment": {"GLOO_SOCKET_IFNAME": "ib0"}}) for rank in range(2)]
    assert only(nodes).kind == "interface-missing"
    assert found(nodes, replace(WANTED, env={"GLOO_SOCKET_IFNAME": "eth0"})) == ()


def test_an_mtu_that_differs_on_the_way_is_found() -> None:
    interfaces = [{"name": "eth0", "up": True, "mtu": 9000, "addresses": ["10.0.0.2"]}]
    finding = only(four(seen(1, {"interfaces": interfaces})))
    assert (finding.kind, finding.expected, finding.found) == ("mtu-differs", "1500", "9000")


# ---- many findings


def test_the_same_on_many_hosts_is_one_finding_and_errors_come_first() -> None:
    low = Finding("b", WARNING, ("node3",), "low")
    every = merged([low, Finding("b", WARNING, ("node1",), "low"), Finding("a", ERROR, ("node2",), "bad")], HOSTS)
    assert [(each.kind, each.hosts) for each in every] == [("a", ("node2",)), ("b", ("node1", "node3"))]


HOSTS = ["node1", "node2", "node3"]


@given(some.dictionaries(some.text(), some.sampled_from(["x", "y", ""])))
def test_every_host_is_as_most_are_or_odd(values: dict[str, str]) -> None:
    usual, others = odd_ones(values)
    odd = {host: value for value, hosts in others.items() for host in hosts}
    assert odd == {host: value for host, value in values.items() if value != usual}
    assert all(len(hosts) <= list(values.values()).count(usual) for hosts in others.values())

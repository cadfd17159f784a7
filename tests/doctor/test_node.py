"""One unhealthy node among healthy ones: kind, severity and hosts of the finding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.doctor.factories import GIB, GPU, find, four_nodes, make_node, only
from torchfab.core.errors import HostError
from torchfab.doctor import ERROR, NOTE, WARNING

LOW = {"free": GIB // 2}
NETWORK = {"machine": {"network": "0 net:[1]"}}

# A problem of node2, and the expected finding: kind, severity, a part of its text.
UNHEALTHY: dict[str, tuple[Mapping[str, Any], str, str, str]] = {
    "no interpreter": ({"python": {"problem": "there is no x"}}, "python-missing", ERROR, "there is no x"),
    "no torch": ({"python": {"torch": "", "cuda": "", "nccl": ""}}, "torch-missing", ERROR, "no module torch"),
    "another torch": ({"python": {"torch": "2.8.0"}}, "torch-differs", ERROR, "version of torch differs"),
    "CUDA version of torch differs": (
        {"python": {"cuda": "12.4"}},
        "cuda-differs",
        ERROR,
        "CUDA version of torch differs",
    ),
    "another NCCL": ({"python": {"nccl": "2.21.5"}}, "nccl-differs", ERROR, "version of NCCL differs"),
    "another python": ({"python": {"python": "3.12.0"}}, "python-differs", WARNING, "version of python differs"),
    "another driver": ({"gpus": {"driver": "550.1"}}, "driver-differs", WARNING, "version of the driver differs"),
    "a GPU less": ({"gpus": {"devices": 1, "gpus": [GPU]}}, "gpus-differ", ERROR, "GPUs differ"),
    "MIG": ({"gpus": {"gpus": [GPU, {**GPU, "mig": True}]}}, "gpus-differ", ERROR, "GPUs differ"),
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
    "left memory": (
        {"unused_memory": [{"user": "bob", "files": 2, "bytes": 2**30}, {"user": "eve", "files": 1, "bytes": 2**30}]},
        *("memory-left", WARNING, "/dev/shm holds 2 GiB left by ended processes (bob: 2 files, 1 GiB, eve:"),
    ),
    "few files": ({"limits": {"files": 256}}, "limit-low", WARNING, "ulimit -n"),
    "few processes": ({"limits": {"processes": 100}}, "limit-low", WARNING, "ulimit -u"),
    "locked memory": ({"limits": {"locked": 65536}, "machine": {"infiniband": True}}, "limit-low", ERROR, "ulimit -l"),
    "other code": ({"code": {"digest": "0"}}, "code-differs", ERROR, "code in /project differs from the other nodes"),
    "a part that fails": (
        {"limits": None, "failed": {"limits": "OSError: x"}},
        "not-looked-at",
        WARNING,
        "limits could not be checked",
    ),
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
        *("lingering", WARNING, "2 processes of the job gpt2 left there"),
    ),
    "a running job": (
        {"jobs": [{"job_id": "gpt2-12ab34cd", "processes": 1, "supervised": True, "example": "7 (python)"}]},
        *("job-running", NOTE, "the job gpt2 runs there"),
    ),
}
CONNECTIONS: dict[str, tuple[Mapping[str, Any], str, str, str]] = {
    "timeout": ({"connection": {"outcome": "timeout"}}, "connect-timeout", ERROR, "port 41000, times out"),
    "refused": ({"connection": {"outcome": "refused"}}, "connect-refused", ERROR, "(10.0.0.1) port 41000, is refused"),
    "no route": (
        {"connection": {"outcome": "rejected", "why": "No route to host"}},
        *("connect-rejected", ERROR, "en route: No route to host"),
    ),
    "failed": (
        {"connection": {"outcome": "failed", "why": "Protocol error"}},
        *("connect-failed", ERROR, "port 41000, fails: Protocol error"),
    ),
    "stranger": ({"connection": {"outcome": "stranger"}}, "connect-stranger", ERROR, "reaches another machine"),
    "unknown name": ({"addresses": [], "connection": None}, "name-unknown", ERROR, "node1, does not resolve"),
    "loopback": (
        {"addresses": ["127.0.1.1"], "source": "127.0.0.1", "connection": {"outcome": "refused"}},
        *("name-loopback", ERROR, "resolves to the node itself"),
    ),
    "another address": ({"addresses": ["10.9.9.9"]}, "name-differs", WARNING, "resolves differently"),
    "its own disk": ({"sees": {"workdir": False}}, "workdir-not-shared", WARNING, "differs from the other nodes"),
}


def test_nothing_is_found_on_healthy_nodes() -> None:
    assert find([make_node(rank) for rank in range(4)]) == ()


@pytest.mark.parametrize("case", UNHEALTHY)
def test_a_problem_of_one_node_is_found_on_that_node_only(case: str) -> None:
    changes, kind, severity, text = UNHEALTHY[case]
    finding = only(four_nodes(make_node(1, changes)))
    assert (finding.kind, finding.severity, finding.hosts) == (kind, severity, ("node2",))
    assert text in finding.what
    assert finding.fix or severity == NOTE


@pytest.mark.parametrize("case", CONNECTIONS)
def test_a_problem_of_the_connection_to_node_0_is_found(case: str) -> None:
    changes, kind, severity, text = CONNECTIONS[case]
    finding = only(four_nodes(make_node(1, None, changes)))
    assert (finding.kind, finding.severity, finding.hosts) == (kind, severity, ("node2",))
    assert text in finding.what
    assert finding.fix


def test_a_missing_torch_is_not_also_another_version() -> None:
    assert only(four_nodes(make_node(1, UNHEALTHY["no torch"][0]))).kind == "torch-missing"


def test_an_unreachable_node_does_not_hide_findings_on_others() -> None:
    lost = replace(
        make_node(3),
        probe=None,
        connectivity=None,
        clock=None,
        connect_s=None,
        error=HostError("refused", "start sshd"),
    )
    nodes = four_nodes(lost)
    nodes[2] = make_node(2, UNHEALTHY["another torch"][0])
    every = find(nodes)
    assert [(each.kind, each.hosts) for each in every] == [("unreachable", ("node4",)), ("torch-differs", ("node3",))]
    assert every[0].fix == "start sshd"


def test_a_connected_node_without_an_answer_is_an_error() -> None:
    silent = replace(
        make_node(1),
        probe=None,
        connectivity=None,
        clock=None,
        error=HostError("no answer within 30 s", "see its load"),
    )
    finding = only(four_nodes(silent))
    assert (finding.kind, finding.severity, finding.hosts) == ("not-looked-at", ERROR, ("node2",))


def test_a_slow_login_is_not_attributed_to_shell_start_up_files() -> None:
    slow = only(four_nodes(replace(make_node(2), connect_s=7.0)))
    assert (slow.kind, slow.found) == ("ssh-slow", "7.0 s")
    assert "rc" not in slow.fix


def test_an_unreachable_node_0_gives_no_connection_findings() -> None:
    nodes = [replace(make_node(0), probe=None, connectivity=None, error=HostError("refused"))]
    nodes += [make_node(rank, None, {"connection": None}) for rank in (1, 2)]
    assert only(nodes).hosts == ("node1",)


def test_a_taken_port_is_found_on_node_0() -> None:
    finding = only(four_nodes(make_node(0, {"port": {"port": 5001, "problem": "port 5001 is in use"}})))
    assert (finding.kind, finding.hosts) == ("port-taken", ("node1",))

"""The pure parts of the rehearsal cluster: names, and the text of its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest

from testbed import Cluster, RehearsalError, allocation, as_kind, namespaces, network, processes, templates
from testbed.layout import Account, Layout
from testbed.processes import Process

ROOT = Account("root", 0, 0, "/bin/bash", private=True, switched=False)
TRAINER = Account("trainer", 61200, 61200, "/bin/bash", private=True, switched=True)
NETNS = Layout(7, "netns", 2, 22, "7-token", Path("/somewhere/with blank"), ROOT)
LOOPBACK = Layout(
    8, "loopback", 2, 20022, "8-token", Path("/somewhere"), replace(TRAINER, private=False, switched=False)
)


def test_the_ssh_config_has_address_port_and_key_of_every_node() -> None:
    assert templates.ssh_config(NETNS) == (
        "Host node1\n    HostName 10.77.7.1\n    Port 22\n"
        "Host node2\n    HostName 10.77.7.2\n    Port 22\n"
        "Host node*\n    User root\n    IdentityFile /tmp/tfab-7/id\n    IdentitiesOnly yes\n"
        "    UserKnownHostsFile /tmp/tfab-7/known_hosts\n    StrictHostKeyChecking yes\n"
    )


def test_paramiko_reads_the_ssh_config_as_openssh_does() -> None:
    config = paramiko.SSHConfig.from_text(templates.ssh_config(LOOPBACK))
    assert dict(config.lookup("node2")) == {
        "hostname": "127.77.8.2",
        "port": "20022",
        "user": "trainer",
        "identityfile": ["/tmp/tfab-8/id"],
        "identitiesonly": "yes",
        "userknownhostsfile": "/tmp/tfab-8/known_hosts",
        "stricthostkeychecking": "yes",
    }


def test_known_hosts_names_a_port_only_when_it_is_not_22() -> None:
    assert templates.known_hosts(NETNS.nodes, ["k1", "k2"]) == "node1,10.77.7.1 k1\nnode2,10.77.7.2 k2\n"
    assert templates.known_hosts(LOOPBACK.nodes[:1], ["k"]) == "[node1]:20022,[127.77.8.1]:20022 k\n"


def test_inventories_name_every_node_once_and_for_gpus_twice() -> None:
    assert templates.hostfile(NETNS) == "node1\nnode2\n"
    assert templates.gpufile(NETNS) == "node1\nnode1\nnode2\nnode2\n"


def test_loopback_inventories_have_addresses() -> None:
    assert templates.hostfile(LOOPBACK) == "node1 address=127.77.8.1\nnode2 address=127.77.8.2\n"
    assert templates.gpufile(LOOPBACK).splitlines()[:2] == ["node1 address=127.77.8.1"] * 2


def test_etc_hosts_names_every_node_and_the_launch_machine() -> None:
    assert templates.etc_hosts(NETNS).splitlines()[2:5] == ["10.77.7.254 launch", "10.77.7.1 node1", "10.77.7.2 node2"]
    assert "::ffff:10.77.7.1 node1.test" in templates.etc_hosts(NETNS)


@pytest.mark.parametrize(("version", "word"), [((9, 2), "KexAlgorithms"), ((9, 8), "PerSourcePenalties")])
def test_sshd_config_has_only_options_of_its_version(version: tuple[int, int], word: str) -> None:
    text = templates.sshd_config(NETNS.nodes[0], version)
    assert [name for name in ("KexAlgorithms", "PerSourcePenalties") if name in text] == [word]


def test_sshd_sets_home_and_tmux_and_accepts_no_client_environment() -> None:
    text = templates.sshd_config(NETNS.nodes[1], (9, 2))
    node = "/tmp/tfab-7/node2"
    assert f"SetEnv HOME={node}/home TMUX_TMPDIR={node}/tmux TORCHFAB_REHEARSAL=7-token\n" in text
    assert "AcceptEnv" not in text


def test_a_nodes_passwd_changes_the_accounts_home_only() -> None:
    machine = "root:x:0:0:root:/root:/bin/zsh\nsshd:x:103:65534::/run/sshd:/usr/sbin/nologin\n"
    assert templates.passwd(machine, ROOT, "/h") == (
        "root:x:0:0::/h:/bin/bash\nsshd:x:103:65534::/run/sshd:/usr/sbin/nologin\n"
    )


def test_a_nodes_group_file_names_the_accounts_group_once() -> None:
    assert templates.group("root:x:0:\n", ROOT) == "root:x:0:\n"
    assert templates.group("root:x:0:\n", TRAINER) == "trainer:x:61200:\nroot:x:0:\n"


def test_a_nodes_shadow_has_no_other_account() -> None:
    assert templates.shadow(TRAINER) == "trainer:*:1::::::\n"


def test_the_network_is_a_bridge_and_a_veth_pair_per_node() -> None:
    assert network.build_lines(replace(NETNS, size=1)) == [
        "link add tfab7 type bridge",
        "addr add 10.77.7.254/24 dev tfab7",
        "netns add tfab7n1",
        "link add tfab7v1 type veth peer name eth0 netns tfab7n1",
        "link set tfab7v1 master tfab7 up",
        "link set tfab7 up",
    ]


def test_link_names_fit_the_kernels_15_characters() -> None:
    widest = replace(NETNS, number=254, size=250)
    assert max(len(node.cable) for node in widest.nodes) <= 15


def test_a_layout_survives_its_json_record() -> None:
    for layout in (NETNS, LOOPBACK):
        assert Layout.from_json(json.loads(json.dumps({**layout.to_json(), "owner": None}))) == layout


def test_a_loopback_node_of_the_caller_needs_no_prefix() -> None:
    assert namespaces.prefix(LOOPBACK.nodes[0]) == ()
    assert namespaces.session(LOOPBACK.nodes[0])[:2] == ("env", "HOME=/tmp/tfab-8/node1/home")


def test_a_folder_closed_to_the_account_is_found() -> None:
    other_user = replace(TRAINER, uid=os.geteuid() + 1, gid=os.getegid() + 1)
    with tempfile.TemporaryDirectory(dir="/tmp") as closed:  # mode 700; pytest's own folders lie below another such
        inner = Path(closed) / "python"
        inner.mkdir()
        assert namespaces.closed_ancestor(inner, other_user) == Path(closed)
        assert namespaces.closed_ancestor(inner, replace(other_user, uid=os.geteuid())) is None


def test_a_reused_pid_is_not_signalled() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = Process.of(child.pid)
        assert found is not None
        reused_pid = replace(found, started=found.started - 1)
        assert (found.alive(), reused_pid.alive()) == (True, False)
        reused_pid.signal(9)
        assert child.poll() is None
        found.signal(9)
    assert child.returncode == -9
    assert not found.alive()


def test_ending_fails_with_the_pids_of_processes_that_do_not_end() -> None:
    immortal = Process(2**22 + 1, 1)
    with pytest.raises(RehearsalError, match=f"would not end: {immortal.pid}"):
        processes.end(lambda: {immortal}, grace_s=0.02)


@pytest.mark.parametrize("nodes", [0, -1, 251])
def test_a_number_of_nodes_out_of_range_is_an_error(nodes: int) -> None:
    with pytest.raises(RehearsalError, match=f"1 to 250 nodes, not {nodes}"):
        Cluster.up(nodes, "loopback")


def test_an_unknown_kind_is_an_error_that_lists_the_kinds() -> None:
    with pytest.raises(RehearsalError, match="'docker'\n  fix: use one of netns, loopback"):
        as_kind("docker")


def test_missing_programs_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "find_program", lambda name: None if name in ("sshd", "unshare") else name)
    with pytest.raises(RehearsalError, match="not installed: sshd, unshare"):
        allocation.require("loopback", "trainer")


def test_an_ordinary_user_can_neither_use_netns_nor_switch_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(RehearsalError, match="network namespaces need root"):
        allocation.require("netns", None)
    with pytest.raises(RehearsalError, match="only root can run nodes as trainer"):
        allocation.choose_account("loopback", "trainer")

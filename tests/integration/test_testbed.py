"""The rehearsal cluster: hosts that accept logins, are separate, can be broken and repaired, and are removed."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed import Cluster, Kind, RehearsalError, network
from testbed.layout import run_dir
from tests.integration.conftest import ordinary_user
from tests.integration.fab import Fab, eventually
from tests.integration.faults import Matrix
from tests.support import absent

ROOT = Path(__file__).parents[2]


def ssh(cluster: Cluster, host: str, command: str, *flags: str) -> subprocess.CompletedProcess[str]:
    argv = ["ssh", "-F", str(cluster.ssh_config), *flags, host, command]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL)


def say(cluster: Cluster, host: str, command: str) -> str:
    done = ssh(cluster, host, command)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.fixture(params=["netns", "loopback"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    found = request.getfixturevalue(f"{request.param}_cluster")
    assert isinstance(found, Cluster)
    return found


def test_openssh_logs_in_to_every_node_and_checks_its_key(cluster: Cluster) -> None:
    assert [say(cluster, host, "echo in") for host in cluster.hosts] == ["in", "in"]


def test_a_wrong_host_key_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    swapped = tmp_path / "known_hosts"
    first, second = (line.split(" ", 1) for line in cluster.known_hosts.read_text().splitlines())
    swapped.write_text(f"{first[0]} {second[1]}\n{second[0]} {first[1]}\n")
    done = ssh(cluster, "node1", "true", "-o", f"UserKnownHostsFile={swapped}")
    assert done.returncode == 255
    assert "HOST IDENTIFICATION HAS CHANGED" in done.stderr


def test_fabric_logs_in_with_the_same_config(cluster: Cluster) -> None:
    argv = [
        sys.executable,
        "-m",
        "fabric",
        "-S",
        str(cluster.ssh_config),
        "-H",
        "node1,node2",
        "--",
        "echo $TMUX_TMPDIR",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert done.stdout.split() == [str(cluster.node(index).tmux_dir) for index in (0, 1)], done.stderr


def test_homes_differ_and_are_empty_but_for_start_up_files(cluster: Cluster) -> None:
    homes = [say(cluster, host, "echo ~") for host in cluster.hosts]
    assert homes == [str(cluster.node(index).home) for index in (0, 1)]
    assert [say(cluster, host, "find ~ -maxdepth 1 -name '.*' -type f -exec cat {} +") for host in cluster.hosts] == [
        "",
        "",
    ]


def test_with_a_private_passwd_a_session_starts_in_its_home(cluster: Cluster) -> None:
    if not cluster.layout.account.private:
        pytest.skip("an ordinary user's nodes share the machine's password database")
    assert (
        say(cluster, "node2", "pwd; getent passwd $(id -un) | cut -d: -f6").split() == [str(cluster.node(1).home)] * 2
    )


# Runs where /etc is a copy, so that this machine's is not touched; useradd replaces these files so.
REPLACED = """
import shutil, subprocess, sys
from pathlib import Path
from testbed import Cluster

kind, user = sys.argv[1:]
with Cluster.up(1, kind, user=user or None) as cluster:
    for name in ("passwd", "shadow", "group", "hosts"):
        path = Path("/etc", name)
        Path(shutil.copy2(path, f"{path}.new")).replace(path)
    argv = ["ssh", "-F", str(cluster.ssh_config), "node1", "echo ~; getent hosts node1 | wc -l"]
    print(*subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.split())
    print(cluster.node(0).home, int(kind == "netns"))
"""


@pytest.mark.parametrize("kind", ["netns", "loopback"])
def test_a_cluster_survives_that_files_of_the_machines_etc_are_replaced(
    kind: Kind, tmp_path: Path, fab: Fab, matrix: Matrix
) -> None:
    if os.geteuid() != 0:
        absent("only root can replace the files in /etc")
    row = matrix.row("useradd on the machine of a rehearsal cluster", fab) if kind == "netns" else None
    program = [sys.executable, "-c", REPLACED, kind, ordinary_user() or "" if kind == "loopback" else ""]
    own_etc = 'cp -a /etc "$0" && mount --bind "$0" /etc && exec "$@"'
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", own_etc, str(tmp_path / "etc"), *program]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    found, expected = done.stdout.splitlines()
    assert found == expected
    if row:
        row.output_has("ssh node1 logs in, with its own home", "logs in")
        row.nothing_left()
        row.without(2, 3)


def test_loopback_nodes_belong_to_an_ordinary_user(loopback_cluster: Cluster) -> None:
    assert say(loopback_cluster, "node1", "id -u") != "0"
    assert say(loopback_cluster, "node1", "id -un") == loopback_cluster.layout.account.name


def test_the_projects_python_runs_on_every_node(cluster: Cluster) -> None:
    assert (
        say(cluster, "node2", f"{shlex.quote(sys.executable)} -c 'import fabric; print(fabric.__name__)'") == "fabric"
    )


def test_netns_nodes_have_their_own_names_and_find_each_other(netns_cluster: Cluster) -> None:
    assert [say(netns_cluster, host, "hostname") for host in netns_cluster.hosts] == ["node1", "node2"]
    assert socket.gethostname() != "node1"
    address = netns_cluster.node(1).address
    assert say(netns_cluster, "node1", "getent hosts node2").split() == [address, "node2"]
    key = f"-i {netns_cluster.key} -o UserKnownHostsFile={netns_cluster.known_hosts} -o BatchMode=yes"
    assert say(netns_cluster, "node1", f"ssh {key} node2 hostname") == "node2"


def test_tmux_servers_of_two_nodes_are_separate(cluster: Cluster) -> None:
    say(cluster, "node1", "tmux -L torchfab new-session -d -s here 'sleep 60'")
    assert say(cluster, "node1", "tmux -L torchfab list-sessions -F '#S'") == "here"
    assert ssh(cluster, "node2", "tmux -L torchfab list-sessions").returncode != 0
    say(cluster, "node1", "tmux -L torchfab kill-server")


def test_a_partitioned_node_is_unreachable_until_healed(netns_cluster: Cluster) -> None:
    netns_cluster.partition(0)
    # The kernel asks for the node's address three times within 3 s, and is still waiting when the link is back.
    network.ip("neigh", "flush", "to", netns_cluster.node(0).address)
    try:
        assert ssh(netns_cluster, "node1", "true", "-o", "ConnectTimeout=2").returncode == 255
        assert say(netns_cluster, "node2", "hostname") == "node2"
    finally:
        netns_cluster.heal(0)
    assert say(netns_cluster, "node1", "hostname") == "node1"


def test_a_loopback_node_cannot_be_partitioned(loopback_cluster: Cluster) -> None:
    with pytest.raises(RehearsalError, match="netns"):
        loopback_cluster.partition(0)


def test_a_killed_sshd_refuses_logins_but_processes_continue(cluster: Cluster) -> None:
    pid = int(say(cluster, "node2", "setsid sleep 60 < /dev/null > /dev/null 2>&1 & echo $!"))
    cluster.kill_sshd(1)
    try:
        assert cluster.node(1).sshd_pid is None
        assert "refused" in ssh(cluster, "node2", "true").stderr
        os.kill(pid, 0)
    finally:
        cluster.start_sshd(1)
    say(cluster, "node2", f"kill {pid}")


def test_commands_run_in_a_node_without_ssh(cluster: Cluster) -> None:
    node = cluster.node(1)
    done = subprocess.run(node.command("sh", "-c", "echo $HOME; id -un"), capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(node.home), cluster.layout.account.name]


def test_commands_run_on_the_launch_machine_as_the_nodes_user(cluster: Cluster) -> None:
    argv = cluster.on_launch_machine("ssh", "-F", str(cluster.ssh_config), "node1", "echo from $HOME")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout == f"from {cluster.node(0).home}\n", done.stderr


def test_the_nodes_user_has_a_checkout_to_write_in(loopback_cluster: Cluster) -> None:
    checkout = loopback_cluster.checkout()
    assert loopback_cluster.checkout() == checkout
    say(
        loopback_cluster,
        "node1",
        f"touch {checkout}/mine && test -f {checkout}/torchfab/core/errors.py && rm {checkout}/mine",
    )
    fab = str(Path(sys.executable).with_name("fab"))
    argv = loopback_cluster.on_launch_machine(fab, "--list")
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=checkout)
    assert "launch-per-node" in done.stdout, done.stderr


def test_an_ordinary_user_builds_a_loopback_cluster(loopback_cluster: Cluster) -> None:
    script = """
import subprocess
from testbed import Cluster
with Cluster.up(nodes=2, kind="loopback") as cluster:
    command = ["ssh", "-F", str(cluster.ssh_config), "node2", "id -un; echo ~"]
    print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() , cluster.node(1).home)
"""
    argv = loopback_cluster.on_launch_machine(sys.executable, "-c", script)
    root = str(Path(__file__).parents[2])
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=root)
    name, home, expected = done.stdout.split() or pytest.fail(done.stderr)
    assert (name, home) == (loopback_cluster.layout.account.name, expected)


def own(kind: Kind, directory: Path | None = None, keep: bool = False) -> Cluster:
    return Cluster.up(2, kind, directory, user=ordinary_user() if kind == "loopback" else None, keep=keep)


@pytest.fixture
def escape() -> Callable[[Cluster], int]:
    """Return a function that starts a process on node 1 that ignores signals, and returns its pid."""

    def start(cluster: Cluster) -> int:
        command = (
            "(trap '' TERM HUP; setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' > /dev/null 2>&1 & echo $!)"
        )
        return int(say(cluster, "node1", command))

    return start


def test_two_clusters_can_run_at_once(cluster: Cluster) -> None:
    with own(cluster.layout.kind) as other:
        assert other.node(0).address != cluster.node(0).address
        assert say(other, "node1", "echo ~") != say(cluster, "node1", "echo ~")
    assert say(cluster, "node1", "echo still") == "still"


def test_down_leaves_no_process_no_network_and_no_folder(
    cluster: Cluster, escape: Callable[[Cluster], int], tmp_path: Path
) -> None:
    other = own(cluster.layout.kind, tmp_path / "launch files")
    pid = escape(other)
    say(other, "node2", "tmux -L torchfab new-session -d 'sleep 60'")
    assert len(other.processes()) >= 4
    other.down()
    other.down()
    assert other.processes() == set()
    assert not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text()
    assert not other.layout.run_dir.exists()
    assert not other.directory.exists()
    if other.layout.kind == "netns":
        assert not any(name.startswith(f"{other.layout.bridge}n") for name in network.namespaces())
        assert other.layout.bridge not in network.links()
    assert say(cluster, "node1", "echo still") == "still"


def test_down_keeps_files_that_it_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    own("loopback", tmp_path).down()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_another_process_finds_and_removes_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    with own(cluster.layout.kind, tmp_path) as other:
        found = Cluster.load(tmp_path)
        assert found is not None
        assert found.layout == other.layout
        assert found.node(1).sshd_pid == other.node(1).sshd_pid
        with pytest.raises(RehearsalError, match="already has a cluster of 2 nodes"):
            own("loopback", tmp_path)
        found.down()
        assert other.node(1).sshd_pid is None
    assert Cluster.load(tmp_path) is None


def leave_one(kind: Kind) -> tuple[int, str]:
    """Start a cluster in a process that dies; return the cluster's number and its record."""
    up = f"run_dir = Cluster.up(2, {kind!r}).layout.run_dir"
    say = "print(run_dir.name.rpartition('-')[2]); print((run_dir / 'cluster.json').read_text(), end='', flush=True)"
    script = f"import os; from testbed import Cluster; {up}; {say}; os._exit(9)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout, done.stderr
    number, _, record = done.stdout.partition("\n")
    return int(number), record


def is_down(number: int, record: str) -> bool:
    """Return whether nothing is left of a cluster, whose number may be that of a newer one by now."""
    try:
        return (run_dir(number) / "cluster.json").read_text() != record
    except FileNotFoundError:
        return not run_dir(number).exists()


def test_clean_removes_only_clusters_of_dead_owners(loopback_cluster: Cluster, tmp_path: Path) -> None:
    left, record = leave_one("loopback")
    path = run_dir(left) / "cluster.json"
    path.write_text(json.dumps({**json.loads(record), "pid_namespace": "pid:[1]"}))
    assert left not in [cluster.layout.number for cluster in Cluster.clean()]  # its owner cannot be seen from here
    path.write_text(record)
    with own("loopback", tmp_path, keep=True) as kept:
        assert left in [cluster.layout.number for cluster in Cluster.clean()]
        assert eventually(lambda: is_down(left, record), 60)  # a newer one may be creating its folder
        assert say(kept, "node1", "echo still") == "still"
    assert say(loopback_cluster, "node1", "echo still") == "still"


@pytest.mark.parametrize("kind", ["netns", "loopback"])
def test_concurrent_cleans_work(request: pytest.FixtureRequest, kind: Kind) -> None:
    request.getfixturevalue(f"{kind}_cluster")  # which skips where such clusters are impossible
    left, record = leave_one(kind)
    argv = [sys.executable, "-c", "from testbed import Cluster; Cluster.clean()"]
    cleaners = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)]
    errors = [cleaner.communicate(timeout=60)[1] for cleaner in cleaners]
    assert [cleaner.returncode for cleaner in cleaners] == [0] * 4, errors
    assert eventually(lambda: is_down(left, record), 60)
    links = [line for line in (*network.links(), *network.namespaces()) if re.match(rf"tfab{left}(\D|$)", line)]
    assert not links or run_dir(left).exists()  # those of a newer one


def test_a_cluster_that_fails_to_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("testbed.templates.sshd_config", lambda *_, **__: "NoSuchWord yes\n")
    begun = time.monotonic()
    with pytest.raises(RehearsalError, match=r"(?s)sshd of node1 did not start.*NoSuchWord"):
        own("loopback", tmp_path / "here")
    assert time.monotonic() - begun < 30
    assert not [record for record in Path("/tmp").glob("tfab-*/cluster.json") if str(tmp_path) in record.read_text()]
    assert not (tmp_path / "here").exists()


def test_names_stay_short_enough_for_unix_sockets() -> None:
    longest = run_dir(254) / "node250" / "tmux" / f"tmux-{2**32 - 1}" / "torchfab"
    assert len(str(longest).encode()) < 108


def test_inv_cluster_prints_commands_and_removes_the_cluster(tmp_path: Path) -> None:
    inv = [sys.executable, "-m", "invoke", "--search-root", str(ROOT), "cluster"]
    flags = ["--dir", "here", "--kind", "loopback"]

    def call(*more: str) -> str:
        done = subprocess.run([*inv, *flags, *more], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    try:
        lines = [line.strip() for line in call("--nodes", "1").splitlines()]
        assert lines[1] == "log in:     ssh -F here/ssh_config node1"
        launch = "run fab -S here/ssh_config launch-per-node --hostfile here/hosts --follow"
        assert " ".join(shlex.split(lines[2])).endswith(launch)
        argv = shlex.split(lines[1].partition(":")[2])
        assert (
            subprocess.run([*argv, "echo in"], capture_output=True, text=True, cwd=tmp_path, check=True).stdout
            == "in\n"
        )
    finally:
        down = call("--down")
    assert down.startswith("down: loopback cluster node1 ")
    assert list(tmp_path.iterdir()) == []

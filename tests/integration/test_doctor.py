"""`fab doctor` on real hosts that are healthy, and on hosts that are made sick in one way each."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from testbed.cluster import Node
from tests.integration.fab import Done, Fab, eventually
from tests.integration.faults_injected import (
    fake_clock,
    fake_program,
    firewall,
    other_disk,
    other_file,
    start_up_file,
    taken_port,
)
from tests.support import require

PORT = 5001
DOCUMENTS = Path(__file__).parents[1] / "remote" / "host" / "nvidia-smi"


def doctor(fab: Fab, *words: str, **more: Any) -> Done:
    return fab("doctor", "--hostfile", str(fab.cluster.hostfile), *words, **more)


def found(done: Done, rc: int, *words: str) -> None:
    """Assert that doctor ended with this code, without a traceback, and that one paragraph has all these texts."""
    assert done.rc == rc, done
    assert "Traceback" not in done.stdout + done.stderr, done
    paragraphs = done.stdout.split("\n\n")
    assert any(all(word in paragraph for word in words) for paragraph in paragraphs), (words, done)


def logins(node: Node) -> int:
    """Return the number of logins to the node."""
    return (node.layout.directory / "sshd.log").read_text().count("Accepted publickey")


# ---- healthy


def test_healthy_hosts_give_no_finding_over_one_connection_each(any_fab: Fab) -> None:
    nodes = [any_fab.cluster.node(index) for index in range(2)]
    before = [logins(node) for node in nodes]
    done = doctor(any_fab, "--json")
    # Loopback hosts are this machine, where other tests may run jobs at the same time.
    others = {"job-running", "lingering"} if any_fab.cluster.layout.kind == "loopback" else set()
    assert {finding["kind"] for finding in json.loads(done.stdout)["findings"]} <= others, done
    assert [logins(node) - count for node, count in zip(nodes, before, strict=True)] == [1, 1]
    assert not list(any_fab.base.rglob(".torchfab-doctor*"))


def test_healthy_hosts_are_reported(fab: Fab) -> None:
    done = doctor(fab)
    found(done, 0, "no problems found on 2 nodes")
    assert done.stdout.count("\n\n") == 1, done


def test_this_machine_is_a_host_too(fab: Fab) -> None:
    done = fab("-H", "localhost", "doctor", "--json")
    document = json.loads(done.stdout)
    assert [node["host"] for node in document["nodes"]] == ["localhost"]
    assert document["ok"] is (done.rc == 0)


def test_json_has_the_reports_of_all_nodes(fab: Fab) -> None:
    document = json.loads(doctor(fab, "--json").stdout)
    assert document["ok"] is True
    assert [node["host"] for node in document["nodes"]] == ["node1", "node2"]
    for node in document["nodes"]:
        assert node["to_node_0"]["connection"]["outcome"] == "connected"
        assert node["to_node_0"]["sees"] == {"node_dir": True, "workdir": True}
        assert abs(node["clock_ahead_s"]) < 0.5


# ---- hosts that cannot be reached


def test_a_host_that_is_down_is_a_finding_and_the_others_are_checked(fab: Fab) -> None:
    fab.cluster.partition(1)
    try:
        done = doctor(fab, "-t", "1")
    finally:
        fab.cluster.heal(1)
    found(done, 1, "error: node2: ", "fix: check that the node is up")
    found(done, 1, "node1  ", "2.", "eth0")


def test_without_node_0_the_others_are_checked(fab: Fab) -> None:
    fab.cluster.kill_sshd(0)
    try:
        done = doctor(fab)
    finally:
        fab.cluster.start_sshd(0)
    found(done, 1, "error: node1: ", "port 22 refused the connection", "fix: check that sshd runs there")
    assert done.stdout.count("error:") == 1, done


# ---- clocks


@pytest.mark.parametrize(("seconds", "rc", "severity"), [(3, 0, "warning"), (-60, 1, "error")])
def test_a_clock_that_is_off_is_measured(fab: Fab, seconds: int, rc: int, severity: str) -> None:
    with start_up_file(fab.cluster.node(1), fake_clock(seconds)):
        done = doctor(fab)
    found(
        done,
        rc,
        f"{severity}: node2: its clock is off",
        "expected within 500 ms",
        "fix: synchronize it with a time server",
    )
    measured = re.search(r"found ([+-]\d+) ms \(± ([\d.]+) ms\)", done.stdout)
    assert measured, done
    assert abs(int(measured[1]) - seconds * 1000) < 500 + float(measured[2])


# ---- disks


def test_a_full_disk_is_found(fab: Fab) -> None:
    fab.node_dir.mkdir()
    node = fab.cluster.node(1)
    with other_disk(node, fab.node_dir, "size=16k"):
        subprocess.run(
            ["nsenter", f"--mount=/proc/{node.sshd_pid}/ns/mnt", "sh", "-c", f"yes > '{fab.node_dir}/filler'"],
            stderr=subprocess.DEVNULL,
            check=False,
        )
        done = doctor(fab)
    words = "(logs of jobs) cannot be written: No space left on device"
    found(done, 1, f"error: node2: {fab.node_dir} {words}", "found 0 B free", "fix: free space there, or change the")


def test_a_disk_that_is_nearly_full_is_a_warning(fab: Fab) -> None:
    fab.node_dir.mkdir()
    with other_disk(fab.cluster.node(1), fab.node_dir, "size=1m"):
        done = doctor(fab)
    found(done, 0, "warning: node2: the disk of", "(logs of jobs) is nearly full", "expected 2 GiB free")


def test_a_small_shm_and_a_disk_without_inodes_are_warnings(fab: Fab) -> None:
    fab.node_dir.mkdir()
    with (
        other_disk(fab.cluster.node(0), fab.node_dir, "size=3g,nr_inodes=100"),
        other_disk(fab.cluster.node(1), Path("/dev/shm"), "size=64m"),
    ):
        done = doctor(fab)
    found(done, 0, "warning: node1: the disk of", "(logs of jobs) has hardly any inodes left", "found 9")
    found(done, 0, "warning: node2: /dev/shm is small", "found 64 MiB of 64 MiB free", "--shm-size")


# ---- from every node to node 0


def test_a_taken_port_is_found(fab: Fab) -> None:
    with taken_port(fab.cluster.node(0), PORT):
        done = doctor(fab, "--port", str(PORT))
    found(done, 1, f"error: node1: port {PORT} is in use", "fix: choose another --port")


FIREWALLS = {
    "dropped": (("DROP",), "times out", "found no answer after 3.0 s", "a firewall drops the packets"),
    "refused": (("REJECT",), "is refused", "found refused after 0.", "a firewall rejects it"),
    "rejected": (
        ("REJECT", "--reject-with", "icmp-host-prohibited"),
        *("is rejected en route: No route to host", "found rejected", "there is no route, or a firewall"),
    ),
}


@pytest.mark.parametrize("case", FIREWALLS)
def test_a_firewall_is_found_with_its_kind(fab: Fab, case: str) -> None:
    require("iptables")
    target, how, what, fix = FIREWALLS[case]
    with firewall(fab.cluster.node(0), PORT, *target):
        done = doctor(fab, "--port", str(PORT))
    found(done, 1, "error: node2: connecting to node 0, node1 (10.77.", f"port {PORT}, {how}", what, f"fix: {fix}")
    assert done.stdout.count("error:") == 1, done


def hosts_with(fab: Fab, line: str) -> str:
    """Return an /etc/hosts in which node1 is on another line."""
    text = fab.cluster.layout.hosts.read_text()
    return "".join(f"{each}\n" for each in text.splitlines() if not each.endswith(" node1")) + f"{line}\n"


NAMES = {
    "itself": ("127.0.1.1 node1", "resolves to the node itself", "found 127.0.1.1"),
    "unknown": ("", "does not resolve", "fix: add it to /etc/hosts"),
    "another": ("10.77.250.250 node1", "(10.77.250.250)", "Network is unreachable"),
}


@pytest.mark.parametrize("case", NAMES)
def test_a_node_that_resolves_node_0_differently_is_found(fab: Fab, case: str) -> None:
    line, what, more = NAMES[case]
    with other_file(fab.cluster.node(1), "/etc/hosts", hosts_with(fab, line)):
        done = doctor(fab)
    found(done, 1, "error: node2: ", "node 0, node1", what, more)


def test_a_name_of_node_0_that_reaches_another_machine_is_found(fab: Fab) -> None:
    other = fab.cluster.node(1)
    with other_file(other, "/etc/hosts", hosts_with(fab, f"{other.address} node1")), taken_port(other, PORT):
        done = doctor(fab, "--port", str(PORT))
    found(done, 1, "error: node2: connecting to node 0, node1", "reaches another machine", "fix: correct the name in")


def test_a_node_name_on_loopback_is_found(fab: Fab) -> None:
    with other_file(fab.cluster.node(0), "/etc/hosts", hosts_with(fab, "127.0.1.1 node1")):
        done = doctor(fab)
    found(done, 0, "warning: node1: its own name, node1, resolves to loopback", "found 127.0.1.1", "GLOO_SOCKET_IFNAME")


def test_a_missing_interface_is_found(fab: Fab) -> None:
    done = doctor(fab, env={"NCCL_SOCKET_IFNAME": "ib"})
    found(done, 1, "error: node[1-2]: NCCL_SOCKET_IFNAME=ib matches no interface that is up there", "found lo, eth0")


# ---- consistency of the nodes


@contextmanager
def other_torch(node: Node) -> Iterator[None]:
    """Give the node's interpreters another torch, which cannot be imported."""
    package = node.home / "site" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('not to be imported')\n")
    (package / "version.py").write_text("__version__ = '1.2.3'\ncuda = '9.0'\n")
    for name, version in (("torch", "1.2.3"), ("nvidia_nccl_cu12", "2.3.4")):
        metadata = package.parent / f"{name}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    try:
        with start_up_file(node, f"export PYTHONPATH={package.parent}\n"):
            yield
    finally:
        shutil.rmtree(package.parent)


def test_a_different_torch_is_found_without_importing_it(fab: Fab) -> None:
    with other_torch(fab.cluster.node(1)):
        done = doctor(fab)
    found(
        done,
        1,
        "error: node2: the version of torch differs from the other nodes",
        ", found 1.2.3",
        "fix: install the same",
    )
    found(done, 1, "error: node2: the CUDA version of torch differs from the other nodes", ", found 9.0")
    found(done, 1, "error: node2: the version of NCCL differs from the other nodes", ", found 2.3.4")
    found(done, 1, "node2  ", "1.2.3 !", "9.0 !", "2.3.4 !")


def test_different_code_on_one_node_is_found_with_the_files(fab: Fab) -> None:
    fab.write("train.py", "print('new')\n")
    git = ("git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(fab.workdir))
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "x")):
        subprocess.run([*git, *words], check=True)
    fab.write("untracked.log", "not code\n")
    node = fab.cluster.node(1)
    with other_disk(node, fab.workdir):
        copy = f"cd '{fab.workdir}' && echo old > train.py && echo other > untracked.log"
        subprocess.run(["nsenter", f"--mount=/proc/{node.sshd_pid}/ns/mnt", "sh", "-c", copy], check=True)
        done = doctor(fab)
    found(
        done,
        1,
        f"error: node2: the code in {fab.workdir} differs from the other nodes: light.py is missing, train.py",
    )
    found(done, 1, "node1  ", " own ")
    assert "untracked" not in done.stdout
    path = str(fab.workdir / "train.py")
    with other_file(fab.cluster.node(0), path, "older"), other_file(node, path, "older"):
        done = doctor(fab)
    found(done, 0, f"warning: node[1-2]: the code in {fab.workdir} differs from this machine", "fix: copy it")


@contextmanager
def small_mtu(node: Node) -> Iterator[None]:
    """Lower the MTU of a node."""
    for size in (1400, 1500):
        subprocess.run(node.command("ip", "link", "set", "eth0", "mtu", str(size)), check=True)
        if size == 1400:
            yield


def test_a_node_that_differs_from_most_is_found(fab3: Fab) -> None:
    odd, first = fab3.cluster.node(2), fab3.cluster.node(0).address
    names = hosts_with(fab3, f"{first} node1\n10.77.250.250 node1")
    with other_file(odd, "/etc/hosts", names), small_mtu(odd), other_disk(odd, fab3.workdir):
        done = doctor(fab3)
    found(done, 1, "warning: node3: the address of node 0, node1, resolves differently", "10.77.250.250")
    found(done, 1, "warning: node3: the MTU towards node 0", "expected 1500, found 1400")
    found(done, 1, "warning: node3: the disk of the working directory", "expected shared with node 0, found its own")


def test_missing_workdir_and_interpreter_are_found(fab: Fab) -> None:
    done = doctor(fab, "--workdir", "/no/such/folder", "--python", "/no/such/python")
    found(
        done,
        1,
        "error: node[1-2]: the working directory /no/such/folder does not exist",
        "fix: copy it there: fab sync",
    )
    found(done, 1, "error: node[1-2]: there is no /no/such/python", "--python")


def test_a_workdir_without_permission_is_found(loopback_fab: Fab) -> None:
    closed = loopback_fab.workdir / "closed"
    closed.mkdir(mode=0)
    loopback_fab.own(closed)
    done = doctor(loopback_fab, "--workdir", str(closed))
    closed.chmod(0o755)
    found(done, 1, f"error: node[1-2]: the working directory {closed} cannot be entered", "fix: give this user")


def empty_python(fab: Fab) -> Path:
    """Create an interpreter without any package."""
    venv = fab.workdir / "empty"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    (venv / "pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text())
    return venv / "bin" / "python"


def test_low_limits_slow_login_and_missing_torch_are_found(fab: Fab) -> None:
    slow = "Host node2\n  ProxyCommand bash -c 'sleep 5.1; exec 3<>/dev/tcp/%h/%p; cat <&3 & exec cat >&3'\n"
    config = fab.write("slow", slow + fab.cluster.ssh_config.read_text())
    with start_up_file(fab.cluster.node(1), "ulimit -n 256 -u 3000\n"):
        done = doctor(fab, "-S", str(config), "--python", str(empty_python(fab)))
    found(done, 1, "warning: node2: ulimit -n (open files) is low", "expected 1024 or more, found 256")
    found(done, 1, "warning: node2: ulimit -u is low", "expected 4096 or more, found 3000")
    found(done, 1, "warning: node2: logging in is slow", "expected under 5 s, found 5.")
    found(done, 1, "error: node[1-2]: ", "has no module torch", "-m pip install torch")


def test_missing_and_old_tmux_are_found(fab: Fab) -> None:
    with (
        fake_program(fab.cluster.node(0), "tmux", "echo tmux 2.9"),
        fake_program(fab.cluster.node(1), "tmux", "exit 7"),
    ):
        done = doctor(fab)
    found(done, 1, "error: node1: tmux is too old", "expected 3.2 or newer, found 2.9")
    found(done, 1, "error: node2: tmux does not run: tmux -V ended with 7", "fix: install it there")


def test_a_node_that_accepts_logins_but_does_not_answer_is_found(fab: Fab) -> None:
    with start_up_file(fab.cluster.node(1), "sleep 30\n"):
        done = doctor(fab, config={"answer_timeout_s": 1.5})
    found(done, 1, "error: node2: the connection is up, but torchfab's program there gave no answer within 1.5 s")


def test_gpus_come_from_the_nodes_nvidia_smi(fab: Fab) -> None:
    with fake_program(fab.cluster.node(1), "nvidia-smi", f"cat '{DOCUMENTS}/driver-550-h100.xml'"):
        done = doctor(fab)
    found(done, 1, "error: node2: the GPUs differ from", "expected none, found 1 NVIDIA H100 80GB HBM3")
    found(done, 1, "error: node2: GPU 0 (00000000:19:00.0) has had memory errors", "expected 0, found 3")
    found(done, 1, "warning: node2: GPU 0", "is in use by pid 4711 (/opt/venv/bin/python, 68.4 GiB)")
    found(done, 1, "node2  ", "550.90.07 !")


# ---- running jobs and leftovers


def test_a_job_that_runs_is_news(fab: Fab) -> None:
    assert fab(*fab.launch("--name", "long", gpus=True)).rc == 0
    assert eventually(lambda: "light.py" in " ".join(fab.processes().values()), 60)
    found(doctor(fab), 0, "note: node[1-2]: the job long runs there")


def test_processes_without_supervisor_are_leftovers(fab: Fab) -> None:
    marks = ("TORCHFAB_JOB_ID=gpt2-12ab34cd", "TORCHFAB_NODE_RANK=1")
    with subprocess.Popen(fab.cluster.node(1).command("env", *marks, "sleep", "60")) as process:
        try:
            found(
                doctor(fab),
                0,
                "warning: node2: 1 process of the job gpt2 left there without a supervisor",
                "(sleep 60)",
                "fab stop gpt2",
            )
        finally:
            process.kill()


# ---- the quick checks of a launch


@contextmanager
def odd_node(fab: Fab) -> Iterator[None]:
    """Make node2 differ in everything that a launch warns of."""
    node = fab.cluster.node(1)
    with (
        other_torch(node),
        fake_program(node, "nvidia-smi", "echo 4711, 1025"),
        other_disk(node, fab.workdir, "size=1m"),
        start_up_file(node, f"{fake_clock(600)}export PYTHONPATH={node.home}/site PATH={node.home}/fakes:$PATH\n"),
    ):
        script = f"echo 'print(1)' > '{fab.workdir}/light.py'"
        subprocess.run(["nsenter", f"--mount=/proc/{node.sshd_pid}/ns/mnt", "sh", "-c", script], check=True)
        yield


def test_a_launch_warns_of_a_different_node_and_continues(fab: Fab) -> None:
    with odd_node(fab):
        done = fab(*fab.launch("--name", "warned", gpus=True), env={"PYTHONPATH": ""})
        fab("stop", "warned", "--grace", "0")
    assert done.rc == 0, done
    for words in (
        "warning: node2: the version of torch differs from the other nodes\n  expected 2.",
        "warning: node2: the script differs from the other nodes",
        "warning: node2: its clock is off",
        "(logs of jobs) is nearly full",
        "warning: node2: other processes use its GPUs: pid 4711\n  fix: ",
    ):
        assert words in done.stderr, (words, done)
    assert "warning" not in done.stdout
    events = [json.loads(line) for line in (fab.records / "warned" / "events.jsonl").read_text().splitlines()]
    warned = {event["kind"] for event in events if event["event"] == "warning"}
    assert warned == {"torch-differs", "code-differs", "clock-skew", "disk-nearly-full", "gpu-busy"}


def test_a_launch_on_healthy_nodes_gives_no_warning(fab: Fab) -> None:
    assert "warning" not in fab(*fab.launch("--dry-run", gpus=True)).stderr

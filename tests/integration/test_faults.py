"""The fault matrix, faults that do not affect training: full disks, kills, races, slow nodes, wrong clocks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testbed import Cluster
from tests.integration.fab import Done, Fab, eventually
from tests.integration.faults import Matrix
from tests.integration.faults_injected import REAL_TMUX, fake_clock, fake_program, other_disk, start_up_file
from tests.integration.jobs import ok, status_of, two
from torchfab.remote import procfs

# Prints ticks until a file named over appears; then the rank in FAILS exits with 7.
TICK = """
import os, sys, time
while not os.path.exists("over"):
    print("tick", flush=True)
    time.sleep(0.2)
print("the end", flush=True)
if os.environ.get("FAILS") == os.environ["RANK"]:
    sys.exit(7)
time.sleep(1.5)
sys.exit(3 if "FAILS" in os.environ else 0)
"""
FLOOD = """
import os, time
print("begin", flush=True)
while os.environ["RANK"] == "1":
    print("x" * 4000, flush=True)
time.sleep(2)
"""


def launch_ticks(fab: Fab, *words: str) -> None:
    """Launch one rank on each host that prints `tick` until `over`."""
    fab.write("tick.py", TICK)
    ok(fab(*two(fab, "--name", "x", "--grace", "1", *words, "--", "tick.py")))


def done(process: subprocess.Popen[str], timeout_s: float = 60) -> Done:
    """Wait for a `fab` to end."""
    stdout, stderr = process.communicate(timeout=timeout_s)
    return Done((), process.returncode, stdout, stderr)


@contextmanager
def full_disk(fab: Fab, folder: Path, size: str, in_node: int | None) -> Iterator[tuple[str, ...]]:
    """Mount a small disk over a folder; yield the argv prefix that runs a command where it is visible."""
    folder.mkdir(exist_ok=True)
    fab.own(folder)
    if in_node is None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,size={size}", "tmpfs", str(folder)], check=True)
        try:
            yield ()
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        return
    node = fab.cluster.node(in_node)
    with other_disk(node, folder, f"mode=700,size={size}"):
        yield ("nsenter", f"--mount=/proc/{node.sshd_pid}/ns/mnt")


def fill(folder: Path, inside: tuple[str, ...] = ()) -> None:
    """Write until the disk of a folder is full."""
    for block in ("64k", "1"):  # to the last byte
        words = [*inside, "dd", "if=/dev/zero", f"of={folder}/ballast-{block}", f"bs={block}"]
        subprocess.run(words, capture_output=True, check=False, timeout=60)


# ---- full disks


def test_the_disk_of_the_logs_is_full(fab: Fab, matrix: Matrix) -> None:
    row = matrix.row("disk full on a node: logs", fab)
    row.without(3)
    fab.write("flood.py", FLOOD)
    with full_disk(fab, fab.node_dir, "2m", 1):
        ok(fab(*two(fab, "--name", "x", "--", "flood.py")))
        assert eventually(lambda: status_of(fab, "x")["ended"], 30)
        row.state_is("failed", "disk-full", "node2")
        row.logs("node1 [0] begin", "node2 [1] begin", f"node2 [1] {'x' * 4000}")
        row.stopped()


def test_the_disk_of_torchfabs_records_on_a_node_is_full(fab: Fab, matrix: Matrix) -> None:
    row = matrix.row("disk full on a node: torchfab's own records", fab)
    row.without(3)
    with full_disk(fab, fab.node_dir, "2m", 1) as inside:
        fab.write("idle.py", "import time\nprint('begin', flush=True)\ntime.sleep(90)\n")
        ok(fab(*two(fab, "--name", "x", "--", "idle.py")))
        assert eventually(lambda: fab("logs", "x", "--no-fold").stdout.count("begin") == 2, 60)
        fill(fab.node_dir, inside)
        row.state_is("running", "running")
        os.kill(status_of(fab, "x")["nodes"][1]["ranks"][0]["pid"], signal.SIGKILL)
        assert eventually(lambda: status_of(fab, "x")["nodes"][1]["state"] != "running", 60)
        row.state_is("failed", "killed", "node2")
        row.logs("node1 [0] begin", "node2 [1] begin")
        row.stopped()


def test_a_full_disk_of_records_refuses_a_launch(fab: Fab, matrix: Matrix) -> None:
    row = matrix.row("disk full on the launch machine: records", fab)
    row.without(2, 3)
    with full_disk(fab, fab.records, "64k", None):
        fill(fab.records)
        refused = fab(*fab.launch("--name", "x", gpus=True))
        row.fails_with(refused, "No space left on device")
        row.nothing_left(within_s=10, folders=True)
        assert [path.name for path in fab.records.iterdir() if path.is_dir()] == []


# ---- a launch that is killed while it confirms

HOOK = """
import sys, time
sys.modules["_json"] = None  # without it, the program uses json.loads
import json
real = json.loads
def loads(text, *words, **more):
    value = real(text, *words, **more)
    if isinstance(value, dict) and value.get("op") == "commit":
        open({mark!r}, "w").close()
        time.sleep(1.5)
    return value
json.loads = loads
"""


def test_fab_is_killed_while_it_confirms(fab: Fab, matrix: Matrix) -> None:
    row = matrix.row("kill -9 of fab while it confirms", fab)
    row.without(3)
    mark = fab.folder / "asked"
    hook = fab.write("hook.py", HOOK.format(mark=str(mark)))
    slow = f'code="$4"; shift 4; exec {sys.executable} -I -S -c "exec(open(\'{hook}\').read()); $code" "$@"'
    fab.write("tick.py", TICK)
    with fake_program(fab.cluster.node(1), "python3", slow):
        process = fab.start(*two(fab, "--name", "x", "--", "tick.py"))
        assert eventually(mark.exists, 60)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(2)
    # Every node got `keep`.
    row.state_is("running", "running")
    row.stopped()
    row.logs("node1 [0] tick", "node2 [1] tick")


# ---- silence


def test_a_server_that_stalls_during_follow_is_reported(fab: Fab, matrix: Matrix, netns_cluster: Cluster) -> None:
    row = matrix.row("an SSH server stalls while its logs are followed", fab)
    row.without(3)
    launch_ticks(fab)
    process = fab.start("logs", "x", "--follow", "--no-fold", config={"answer_timeout_s": 2})
    assert process.stdout is not None
    assert process.stderr is not None
    seen = [process.stdout.readline() for _ in range(8)]
    listener = netns_cluster.node(1).sshd_pid
    assert listener is not None
    stopped = procfs.children(listener)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        # node1's lines keep coming, and node2 is reported as silent.
        row.output_has(process.stderr.readline(), "node2: no data for 2 s (trying again)")
        (fab.workdir / "over").touch()
        rest, _ = process.communicate(timeout=60)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)
    assert process.returncode == 0
    lines = "".join(seen) + rest
    assert "node1 [0] the end" in lines
    assert "node2 [1] the end" in lines
    row.state_is("succeeded", "succeeded")
    row.nothing_left(within_s=10)
    row.logs("node1 [0] the end", "node2 [1] the end")


def test_a_slow_node_delays_no_other(fab: Fab, matrix: Matrix) -> None:
    row = matrix.row("one node is slow", fab)
    row.without(3)
    launch_ticks(fab)
    with fake_program(fab.cluster.node(1), "python3", f'sleep 5; exec {sys.executable} "$@"'):
        row.nodes("running", "running")
        process = fab.start("stop", "x", "--grace", "1")
        # Nothing of node1 is left while node2 has not been reached yet.
        assert eventually(lambda: [pid for pid in fab.processes() if of_node(pid, 0)] == [], 30)
        assert [pid for pid in fab.processes() if of_node(pid, 1)] != []
        assert done(process).rc == 0
    row.state_is("stopped", "stopped")
    row.nothing_left(within_s=10)
    row.logs("node1 [0] tick", "node2 [1] tick")


def of_node(pid: int, index: int) -> bool:
    """Return whether a process belongs to this node."""
    words = procfs.command_line(pid)
    marked = procfs.environment(pid).get("TORCHFAB_NODE_RANK") == str(index)
    return marked or any(f"/node-{index}/" in word for word in words)


# ---- clocks


def test_clocks_five_minutes_apart_do_no_harm(fab: Fab, matrix: Matrix) -> None:
    row = matrix.row("clocks are 5 minutes apart", fab)
    row.without(3)
    with start_up_file(fab.cluster.node(1), fake_clock(300)):
        launch_ticks(fab, "--env", "FAILS=1")
        assert eventually(lambda: fab("logs", "x", "--no-fold").stdout.count("tick") > 4, 60)
        (fab.workdir / "over").touch()
        assert eventually(lambda: status_of(fab, "x")["ended"], 30)
        # By the clocks alone, node1 failed five minutes before node2; in fact 1.5 s after it.
        row.state_is("failed", "exit-code", "node2")
        skews = [node["clock_skew_s"] for node in status_of(fab, "x")["nodes"]]
        assert skews[0] == 0, skews
        assert 298 < skews[1] < 302, skews
        row.logs("node1 [0] the end", "node2 [1] the end")
        row.stopped()


# ---- races


def test_two_concurrent_launches_of_one_name(fab: Fab, matrix: Matrix) -> None:
    row = matrix.row("two launches with one name at the same moment", fab)
    row.without(3)
    fab.write("tick.py", TICK)
    words = two(fab, "--name", "x", "--", "tick.py")
    ends = [done(process) for process in [fab.start(*words) for _ in range(3)]]
    assert sorted(end.rc for end in ends) == [0, 2, 2], ends
    row.fails_with(next(end for end in ends if end.rc == 2), "there is a job x already")
    row.state_is("running", "running")
    assert len([words for words in fab.processes().values() if "supervise" in words]) == 2
    row.logs("node1 [0] tick", "node2 [1] tick")
    row.stopped()


# The node is slow: it waits until the launch is being taken back.
PAUSE = "echo >> {mark}; until [ -e {interrupted} ]; do sleep 0.1; done"
PHASES = {
    "prepares": f'case "$*" in -V) {PAUSE}; echo tmux 3.4;; *) exec {REAL_TMUX} "$@";; esac',
    "starts": f'case "$*" in *new-session*) {PAUSE};; esac; exec {REAL_TMUX} "$@"',
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_job_is_stopped_while_it_is_launched(fab: Fab, matrix: Matrix, phase: str) -> None:
    row = matrix.row(f"stop while the launch {phase}", fab)
    row.without(2, 3)
    mark, interrupted = fab.folder / "reached", fab.folder / "interrupted"
    with fake_program(fab.cluster.node(1), "tmux", PHASES[phase].format(mark=mark, interrupted=interrupted)):
        launch = fab.start(*fab.launch("--name", "x", gpus=True))
        assert eventually(mark.exists, 60)
        stop = fab.start("stop", "x", "--grace", "1")
        assert launch.stderr is not None
        assert any("interrupted" in line for line in launch.stderr)
        interrupted.touch()
        stopped, launched = done(stop), done(launch)
    assert stopped.rc == 0, stopped
    assert launched.rc == 130, launched
    row.output_has(stopped.stdout, "job x: its launch was rolled back; none of its processes is running")
    row.nothing_left(within_s=20, folders=True)
    assert fab.jobs() == []


def test_two_concurrent_stops_both_succeed(fab: Fab, matrix: Matrix) -> None:
    row = matrix.row("two stops at once", fab)
    row.without(3)
    launch_ticks(fab)
    ends = [done(process) for process in [fab.start("stop", "x", "--grace", "2") for _ in range(2)]]
    assert [end.rc for end in ends] == [0, 0], ends
    row.state_is("stopped", "stopped")
    row.nothing_left()
    row.logs("node1 [0] tick", "node2 [1] tick")

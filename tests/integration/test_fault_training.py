"""The fault matrix, faults that affect training: a real training on two hosts, which the next one resumes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import Cluster, network
from tests.integration.fab import BIGRAM, Fab, eventually
from tests.integration.faults import Matrix, Row, load_last, steps_on_disk
from tests.integration.faults_injected import other_disk
from tests.integration.jobs import ok, status_of
from torchfab.remote import procfs

SIZE = ("--batch-size", "1", "--seq-length", "16", "--eval-size", "8", "--eval-freq", "0", "--max-steps", "1000000")
FREQUENT = ("--log-freq", "1", "--ckpt-freq", "5", "--timeout", "15")
WAIT = {"failure_grace_s": 1}


class Training:
    """A training on both hosts that runs until a fault ends it; the next one resumes from its checkpoint.

    The model is of no matter here: it is the one that starts soonest, and it leaves the machine to other tests.
    """

    def __init__(self, fab: Fab, cache: Path) -> None:
        self.fab = fab
        fab.take(*BIGRAM)
        self.runs = cache.parent / "fault-runs"
        self.folder = self.runs / "x"
        names = ("--experiment-name", "x", "--save-dir", str(self.runs), "--dataset-cache-root", str(cache))
        words = ("--name", "x", "--nproc-per-node", "1", "--grace", "2", "--env", "PAUSE_S=0.05")
        ok(fab(*fab.launch(*words, "--", "bigram.py", *SIZE, *FREQUENT, *names)))
        assert eventually(lambda: len(steps_on_disk(fab, "x")) > 5 and self.checkpoints() != [], 120), fab("logs", "x")

    def checkpoints(self) -> list[Path]:
        """Return the existing checkpoints."""
        return list((self.folder / "checkpoints").glob("step-*.pt"))

    def now(self) -> int:
        """Return the last step in the logs."""
        return steps_on_disk(self.fab, "x")[-1]

    def pids(self, what: str, node: int) -> int:
        """Return the pid of a node's rank, agent or supervisor."""
        if what == "supervisor":
            started = next(self.fab.node_dir.glob(f"jobs/x-*/node-{node}/*/started.json"))
            return int(procfs_json(started)["supervisor_pid"])
        found = status_of(self.fab, "x")["nodes"][node]
        return int(found["ranks"][0]["pid"] if what == "rank" else found["processes"][0]["pid"])

    def check_end(self, row: Row, step: int) -> None:
        """Fill the other three cells of a row: nothing left after stop, the logs, the checkpoint."""
        row.stopped()
        row.steps(step)
        row.checkpoint(self.folder, 5)


def procfs_json(path: Path) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture
def training(fab: Fab, cache: Path) -> Training:
    return Training(fab, cache)


KILLS = {
    "rank": ("kill -9 of a rank", "failed", "killed"),
    "agent": ("kill -9 of the torchrun agent", "failed", "killed"),
    "supervisor": ("kill -9 of our supervisor", "lost failed", "supervisor-killed"),
}


@pytest.mark.parametrize("what", KILLS)
def test_a_process_of_a_training_is_killed(training: Training, matrix: Matrix, what: str) -> None:
    fault, state, cause = KILLS[what]
    row, step = matrix.row(fault, training.fab), training.now()
    os.kill(training.pids(what, 1), signal.SIGKILL)
    assert training.fab("wait", "x", config=WAIT).rc != 0
    row.state_is(state, cause, "node2")
    training.check_end(row, step)


def kill_whole(cluster: Cluster, index: int) -> None:
    """Cut the link of a node and kill all its processes: no packet announces it."""
    cluster.partition(index)
    inside = network.ip("netns", "pids", cluster.layout.nodes[index].namespace).split()
    for pid in map(int, inside):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "fault", ["a node is killed whole", pytest.param("a node's link is down for good", marks=pytest.mark.thorough)]
)
def test_a_node_is_gone(training: Training, matrix: Matrix, netns_cluster: Cluster, fault: str) -> None:
    row, step = matrix.row(fault, training.fab), training.now()
    whole = fault == "a node is killed whole"
    netns_cluster.partition(1)
    if whole:
        kill_whole(netns_cluster, 1)
    try:
        # The rank on node1 times out waiting for the other one; wait ends although node2 does not answer.
        waited = training.fab("-t", "4", "wait", "x", config={**WAIT, "answer_timeout_s": 4}, timeout_s=180)
        assert waited.rc != 0, waited
        row.state_is("failed", "node-unreachable", "node2", flags=("-t", "4"))
        row.nodes("failed", "unreachable", flags=("-t", "4"))
    finally:
        if whole:
            netns_cluster.kill_sshd(1)
            netns_cluster.start_sshd(1)
        netns_cluster.heal(1)
    training.check_end(row, step)


def test_the_disk_of_the_checkpoints_is_full(fab: Fab, cache: Path, matrix: Matrix) -> None:
    checkpoints = cache.parent / "fault-runs" / "x" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    node = fab.cluster.node(0)
    inside = ("nsenter", f"--mount=/proc/{node.sshd_pid}/ns/mnt")
    with other_disk(node, checkpoints, "mode=777,size=12m"):
        training = Training.__new__(Training)
        seen = ("sh", "-c", f"ls {checkpoints}")
        Training.checkpoints = lambda self: subprocess.check_output([*inside, *seen], text=True).split()  # type: ignore[method-assign,assignment,return-value]
        training.__init__(fab, cache)  # type: ignore[misc]
        row, step = matrix.row("disk full on a node: checkpoints", fab), training.now()
        subprocess.run([*inside, "dd", "if=/dev/zero", f"of={checkpoints}/ballast"], capture_output=True, check=False)
        assert fab("wait", "x", config=WAIT, timeout_s=60).rc != 0
        row.state_is("failed", "disk-full", "node1")
        subprocess.run([*inside, "cp", "-r", str(checkpoints), f"{checkpoints}-copy"], check=True)
    (training.folder / "copy").mkdir()
    shutil.move(f"{checkpoints}-copy", training.folder / "copy" / "checkpoints")
    row.stopped()
    row.steps(step)
    row.checkpoint(training.folder / "copy", 5)


# ---- faults that a training survives


@contextlib.contextmanager
def following(fab: Fab) -> Iterator[subprocess.Popen[str]]:
    """Follow the logs; yield the process once it has printed a line."""
    process = fab.start("logs", "x", "--follow", "--lines", "1", config={"answer_timeout_s": 2})
    assert process.stdout is not None
    assert process.stdout.readline()
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


class Survivor:
    """A training that continues after each of many faults, with a row for each."""

    def __init__(self, training: Training, matrix: Matrix) -> None:
        self.training, self.matrix, self.fab = training, matrix, training.fab
        self.cluster = training.fab.cluster
        self.rows: list[tuple[Row, int]] = []

    def continues(self, fault: str) -> Row:
        """Assert that it continues, and that status and why report so."""
        step = self.training.now()
        assert eventually(lambda: self.training.now() > step + 5, 30), fault
        row = self.matrix.row(fault, self.fab)
        row.state_is("running", "running")
        self.rows.append((row, self.training.now()))
        return row

    def lose_tmux(self) -> None:
        argv = [*self.cluster.node(1).command(), "tmux", "-L", "torchfab", "display-message", "-p", "#{pid}"]
        os.kill(int(subprocess.check_output(argv, text=True)), signal.SIGKILL)
        self.continues("kill -9 of the tmux server")

    def lose_sshd(self) -> None:
        listener = self.cluster.node(1).sshd_pid
        assert listener is not None
        with following(self.fab):
            for pid in procfs.children(listener):
                os.kill(pid, signal.SIGKILL)
            self.continues("kill -9 of an sshd that serves a connection")
        self.cluster.kill_sshd(1)
        try:
            row = self.matrix.row("kill -9 of the sshd that listens", self.fab)
            row.nodes("running", "unreachable")
        finally:
            self.cluster.start_sshd(1)
        row.state_is("running", "running")
        self.rows.append((row, self.training.now()))

    def lose_fab(self) -> None:
        with following(self.fab) as process:
            os.killpg(process.pid, signal.SIGKILL)
        self.continues("kill -9 of fab while it follows")

    def lose_a_link(self) -> None:
        self.cluster.partition(1)
        time.sleep(5)
        self.cluster.heal(1)
        self.continues("a node's link is down for 5 s")

    def lose_the_launch_machine(self) -> None:
        layout = self.cluster.layout
        words = (f"{layout.gateway}/24", "dev", layout.bridge)
        with following(self.fab) as process:
            network.ip("addr", "del", *words)
            os.killpg(process.pid, signal.SIGKILL)
            time.sleep(3)
            network.ip("addr", "add", *words)
        self.continues("the launch machine is gone, and back")

    def lose_the_records(self) -> None:
        with read_only(self.fab.records):
            refused = self.fab(*self.fab.launch("--name", "y"))
            row = self.continues("the records folder is read-only")
            row.fails_with(refused, "Read-only file system")

    def check_ends(self) -> None:
        ok(self.fab("stop", "x", "--grace", "10"))
        for row, step in self.rows:
            row.nothing_left(within_s=10)
            row.steps(step)
            row.checkpoint(self.training.folder, 5)
        assert load_last(self.training.folder) >= self.rows[-1][1]


def test_a_training_survives_faults_that_do_not_affect_it(training: Training, matrix: Matrix) -> None:
    survivor = Survivor(training, matrix)
    survivor.lose_tmux()
    survivor.lose_sshd()
    survivor.lose_fab()
    survivor.lose_a_link()
    survivor.lose_the_launch_machine()
    survivor.lose_the_records()
    survivor.check_ends()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder read-only, also for root."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)

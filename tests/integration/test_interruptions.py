"""A launch that is interrupted, killed or disconnected leaves nothing running, and its name free."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.fab import Done, Fab, eventually
from tests.integration.faults import Matrix
from tests.integration.faults_injected import REAL_TMUX, fake_program
from torchfab.remote import procfs
from torchfab.transport import bundle

# The slow node stays in its step of the phase until the test lets it continue; the other finishes long before.
PAUSE = "echo >> '{reached}'; until [ -e '{released}' ]; do sleep 0.05; done"
PHASES = {
    "one": f'case "$*" in -V) {PAUSE}; echo tmux 3.4;; *) exec {REAL_TMUX} "$@";; esac',
    "two": f'case "$*" in *new-session*) {PAUSE};; esac; exec {REAL_TMUX} "$@"',
}


class Launch:
    """A launch in which one node is slow.

    Parameters
    ----------
    fab : Fab
        What launches.
    slow : int
        Index of the slow node.
    config : Mapping, optional
        As for `Fab`.
    """

    def __init__(self, fab: Fab, slow: int, config: Mapping[str, object] | None) -> None:
        self.node = fab.cluster.node(slow)
        self.reached, self.released = fab.folder / "reached", fab.folder / "released"
        self.there_before = self.connections()
        self.process = fab.start(*fab.launch("--name", "x", gpus=True), config=config)

    def signal(self, number: int) -> None:
        """Send a signal to the launching `fab`."""
        os.killpg(self.process.pid, number)

    def await_interrupted(self) -> str:
        """Wait until `fab` prints that it was interrupted; return its stderr so far."""
        assert self.process.stderr
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if "interrupted" in line:
                break
        return "".join(lines)

    def ended(self) -> Done:
        """Wait for the end of `fab`."""
        return ended(self.process)

    def release(self) -> None:
        """Let the slow node continue."""
        self.released.touch()

    def connections(self) -> set[int]:
        """Return the processes of all connections to the slow node."""
        listener = self.node.sshd_pid
        assert listener is not None
        return set(procfs.descendants([listener]))

    def release_and_wait(self) -> None:
        """Let the slow node continue, and wait until no connection to it is left: it has noticed that `fab` is gone."""
        self.release()
        assert eventually(lambda: self.connections() <= self.there_before, 30)


@contextmanager
def launching(fab: Fab, phase: str, slow: int = 1, config: Mapping[str, object] | None = None) -> Iterator[Launch]:
    """Start a launch; return it when the slow node is still in this phase and the other has finished it."""
    names = {name: fab.folder / name for name in ("reached", "released")}
    with fake_program(fab.cluster.node(slow), "tmux", PHASES[phase].format(**names)):
        launch = Launch(fab, slow, config)
        try:
            assert eventually(launch.reached.exists, 60)
            time.sleep(0.3)
            yield launch
        finally:
            launch.release()
            if launch.process.poll() is None:
                launch.signal(signal.SIGKILL)
                launch.process.communicate()


def ended(process: subprocess.Popen[str]) -> Done:
    stdout, stderr = process.communicate(timeout=60)
    return Done((), process.returncode, stdout, stderr)


def assert_name_is_free(fab: Fab) -> None:
    done = fab(*fab.launch("--name", "x", gpus=True))
    assert done.rc == 0, done


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_rolls_everything_back(fab: Fab, phase: str) -> None:
    with launching(fab, phase) as launch:
        launch.signal(signal.SIGINT)
        stderr = launch.await_interrupted()
        if phase == "two":  # a node confirms that it has rolled back
            launch.release()
        done = launch.ended()
        stderr += done.stderr
        assert done.rc == 130, done
        assert done.stdout == "", done
        assert "error: interrupted; nothing was left running" in stderr, stderr
        assert "Traceback" not in stderr, stderr
        assert fab.jobs() == []
        launch.release_and_wait()
        fab.assert_nothing_left(within_s=10)


def test_repeated_ctrl_c_still_rolls_everything_back(fab: Fab) -> None:
    with launching(fab, "two") as launch:
        for _ in range(4):
            launch.signal(signal.SIGINT)
            time.sleep(0.2)
        launch.release()
        done = launch.ended()
        assert done.rc == 130, done
        assert "error: interrupted; nothing was left running" in done.stderr, done
        fab.assert_nothing_left(within_s=10)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_launch_killed_in_phase_one_leaves_nothing(fab: Fab, matrix: Matrix, number: signal.Signals) -> None:
    row = matrix.row("kill -9 of fab while it prepares", fab) if number == signal.SIGKILL else None
    with launching(fab, "one") as launch:
        launch.signal(number)
        assert launch.ended().rc == -number
        launch.release_and_wait()
        assert eventually(lambda: fab.left() == {"records": ["x"]}, 60), fab.left()
        jobs = fab("jobs")
        assert "no job was launched" in jobs.stdout
        if row:
            row.output_has(jobs.stdout, "no job was launched")
            row.nothing_left(folders=True)
            row.without(2, 3)
    assert_name_is_free(fab)


def test_nodes_roll_back_the_launch_of_a_killed_fab(fab: Fab, matrix: Matrix) -> None:
    row = matrix.row("kill -9 of fab while it starts", fab)
    row.without(2, 3)
    with launching(fab, "two") as launch:
        assert eventually(lambda: len(fab.processes()) >= 2, 60), fab.processes()  # the other node is ready
        launch.signal(signal.SIGKILL)
        launch.ended()
        launch.release()
        assert eventually(lambda: fab.left() == {"records": ["x"]}, 60), fab.left()
    row.state_is("lost", "launch-cut-off")
    row.nothing_left(folders=True)
    assert fab("jobs", "--remove", "x").rc == 0
    assert_name_is_free(fab)


@pytest.mark.parametrize("slow", [0, 1], ids=["the other is slow", "while it is slow"])
def test_a_connection_that_dies_between_the_phases_is_named(fab: Fab, slow: int) -> None:
    with launching(fab, "one", slow) as launch:
        fab.cluster.kill_sshd(1)
        launch.release()
        try:
            done = launch.ended()
        finally:
            fab.cluster.start_sshd(1)
        assert done.rc == 1, done
        assert "1 of 2 hosts failed; " in done.stderr, done
        assert "node2: the connection was lost" in done.stderr, done
        assert "Traceback" not in done.stderr, done
        # The node rolls back what is not confirmed. The record of a job that may run somewhere is kept.
        assert eventually(lambda: set(fab.left()) <= {"records"}, 60), fab.left()
    if fab.jobs():
        assert "did not confirm that no process of it runs there" in done.stderr, done
        assert fab("stop", "x").rc == 0


def test_a_node_disconnected_in_phase_two_is_named_and_can_be_stopped(fab: Fab) -> None:
    with launching(fab, "two", config={"start_timeout_s": 0.5}) as launch:
        fab.cluster.partition(1)
        try:
            done = launch.ended()
            launch.release()
            assert done.rc == 1, done
            assert "node2 did not confirm that no process of it runs there" in done.stderr, done
            assert "fab stop x" in done.stderr, done
            stopped = fab("-t", "1", "stop", "x", "--grace", "0")
            assert stopped.rc == 1, stopped
            assert "node2: no " in stopped.stderr, stopped
        finally:
            fab.cluster.heal(1)
    assert fab("stop", "x", "--grace", "0").rc == 0
    assert fab.processes() == {}
    assert fab.sessions() == fab.sessions_before
    assert fab("jobs", "--remove", "x").rc == 0


def test_ctrl_c_on_follow_leaves_all_ranks_running(fab: Fab) -> None:
    process = fab.start(*fab.launch("--name", "x", "--follow", gpus=True))
    assert eventually(lambda: "running" in fab("status", "x").stdout, 30)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    done = ended(process)
    assert done.rc == 130, done
    assert "the job is still running; " in done.stderr, done
    assert "to end it: fab stop x" in done.stderr, done
    assert len(fab.processes()) == 6  # on each node one supervisor and two ranks


def test_a_node_rolls_back_an_unconfirmed_launch(tmp_path: Path) -> None:
    request = {
        "op": "prepare",
        "job_id": "x-1",
        "session": "x-node0",
        "node_rank": 0,
        "node_dir": str(tmp_path / "nodes"),
        "workdir": str(tmp_path),
        "python": sys.executable,
        "script": None,
        "modules": [],
        "master_addr": "127.0.0.1",
        "peers": [],
        "one_machine": True,
        "port": 0,
        "write": True,
        "patience_s": 1,
    }
    argv = bundle.argv(sys.executable)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as node:
        assert node.stdin
        assert node.stdout
        node.stdin.write(bundle.packed() + json.dumps(request).encode() + b"\n")
        node.stdin.flush()
        assert node.stdout.readline().startswith(b"\x1e")
        assert (tmp_path / "nodes/jobs/x-1/node-0/node.py").exists()
        assert node.wait(10) == 0  # and its stdin is still open
        assert not (tmp_path / "nodes/jobs/x-1").exists()

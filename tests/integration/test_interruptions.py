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
from torchfab.transport import bundle

# Duration of the slow node's step of the phase, in seconds; the others finish long before.
SLOW_S = 1.5
ASKED = "echo >> '{mark}'; sleep 1.5"
PHASES = {
    "one": f'case "$*" in -V) {ASKED}; echo tmux 3.4;; *) exec {REAL_TMUX} "$@";; esac',
    "two": f'case "$*" in *new-session*) {ASKED};; esac; exec {REAL_TMUX} "$@"',
}


@contextmanager
def launching(
    fab: Fab, phase: str, slow: int = 1, config: Mapping[str, object] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start a launch; return its process when the slow node is still in this phase and the other has finished it."""
    mark = fab.folder / "asked"
    with fake_program(fab.cluster.node(slow), "tmux", PHASES[phase].format(mark=mark)):
        process = fab.start(*fab.launch("--name", "x", gpus=True), config=config)
        assert eventually(mark.exists, 10)
        time.sleep(0.3)
        yield process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def ended(process: subprocess.Popen[str]) -> Done:
    stdout, stderr = process.communicate(timeout=30)
    return Done((), process.returncode, stdout, stderr)


def assert_name_is_free(fab: Fab) -> None:
    done = fab(*fab.launch("--name", "x", gpus=True))
    assert done.rc == 0, done


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_rolls_everything_back(fab: Fab, phase: str) -> None:
    with launching(fab, phase) as process:
        os.killpg(process.pid, signal.SIGINT)
        done = ended(process)
        assert done.rc == 130, done
        assert done.stdout == "", done
        assert "error: interrupted; nothing was left running" in done.stderr, done
        assert "Traceback" not in done.stderr, done
        assert fab.jobs() == []
        time.sleep(SLOW_S)  # the slow node continues alone, and notices that fab is gone
        fab.assert_nothing_left(within_s=3)


def test_repeated_ctrl_c_still_rolls_everything_back(fab: Fab) -> None:
    with launching(fab, "two") as process:
        for _ in range(4):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.2)
        done = ended(process)
        assert done.rc == 130, done
        assert "error: interrupted; nothing was left running" in done.stderr, done
        fab.assert_nothing_left(within_s=3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_launch_killed_in_phase_one_leaves_nothing(fab: Fab, matrix: Matrix, number: signal.Signals) -> None:
    row = matrix.row("kill -9 of fab while it prepares", fab) if number == signal.SIGKILL else None
    with launching(fab, "one") as process:
        os.killpg(process.pid, number)
        assert ended(process).rc == -number
        time.sleep(SLOW_S)
        assert eventually(lambda: fab.left() == {"records": ["x"]}, 3), fab.left()
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
    with launching(fab, "two") as process:
        assert eventually(lambda: len(fab.processes()) >= 2, 3), fab.processes()  # the other node is ready
        os.killpg(process.pid, signal.SIGKILL)
        ended(process)
        assert eventually(lambda: fab.left() == {"records": ["x"]}, 8), fab.left()
    row.state_is("lost", "launch-cut-off")
    row.nothing_left(folders=True)
    assert fab("jobs", "--remove", "x").rc == 0
    assert_name_is_free(fab)


@pytest.mark.parametrize("slow", [0, 1], ids=["the other is slow", "while it is slow"])
def test_a_connection_that_dies_between_the_phases_is_named(fab: Fab, slow: int) -> None:
    with launching(fab, "one", slow) as process:
        fab.cluster.kill_sshd(1)
        try:
            done = ended(process)
        finally:
            fab.cluster.start_sshd(1)
        assert done.rc == 1, done
        assert "1 of 2 hosts failed; " in done.stderr, done
        assert "node2: the connection was lost" in done.stderr, done
        assert "Traceback" not in done.stderr, done
        # The node rolls back what is not confirmed. The record of a job that may run somewhere is kept.
        assert eventually(lambda: set(fab.left()) <= {"records"}, 8), fab.left()
    if fab.jobs():
        assert "did not confirm that nothing of it runs there" in done.stderr, done
        assert fab("stop", "x").rc == 0


def test_a_node_disconnected_in_phase_two_is_named_and_can_be_stopped(fab: Fab) -> None:
    with launching(fab, "two", config={"start_timeout_s": 0.5}) as process:
        fab.cluster.partition(1)
        try:
            done = ended(process)
            assert done.rc == 1, done
            assert "node2 did not confirm that nothing of it runs there" in done.stderr, done
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
    assert eventually(lambda: "running" in fab("status", "x").stdout, 10)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    done = ended(process)
    assert done.rc == 130, done
    assert "the job goes on; " in done.stderr, done
    assert "to end it: fab stop x" in done.stderr, done
    assert len(fab.processes()) == 8


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

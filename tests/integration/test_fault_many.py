"""The fault matrix, one of 64 hosts: a launch fails as a whole, and a running job reports the host that died."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from testbed import Cluster, RehearsalError
from tests.integration.conftest import ordinary_user
from tests.integration.fab import Fab, eventually
from tests.integration.faults import Matrix
from tests.integration.jobs import ok, status_of
from tests.support import absent

BAD = 36
SLEEP = "import time\nprint('begin', flush=True)\ntime.sleep(600)\n"
PATIENT = {"connect_timeout_s": 30, "prepare_timeout_s": 120, "start_timeout_s": 60, "answer_timeout_s": 60}


@pytest.fixture
def many(_no_leftovers: None) -> Iterator[Fab]:
    """The real `fab`, with 64 hosts on loopback addresses."""
    try:
        cluster = Cluster.up(nodes=64, kind="loopback", user=ordinary_user())
    except RehearsalError as error:
        absent(str(error))
    with cluster:
        fab = Fab(cluster)
        yield fab
        fab.close()


def test_one_of_64_hosts_is_down_and_later_one_dies(many: Fab, matrix: Matrix) -> None:
    fab, name = many, f"node{BAD + 1}"
    fab.write("sleep.py", SLEEP)
    lines = [line for line in fab.cluster.hostfile.read_text().splitlines() if line and not line.startswith("#")]
    gpus = fab.write("gpus", "\n".join(lines))
    words = ("launch-per-gpu", "--gpufile", str(gpus), "--name", "x", "--grace", "1", "--", "sleep.py")

    row = matrix.row("1 of 64 hosts is down at the launch", fab)
    row.without(2, 3)
    fab.cluster.kill_sshd(BAD)
    refused = fab(*words, config=PATIENT, timeout_s=200)
    fab.cluster.start_sshd(BAD)
    row.fails_with(refused, "refused the connection", f"{name}:")
    assert "1 of 64 hosts failed; nothing was started" in refused.stderr, refused
    row.nothing_left(within_s=10, folders=True)

    row = matrix.row("1 of 64 hosts dies while the job runs", fab)
    row.without(3)
    ok(fab(*words, config=PATIENT, timeout_s=200))
    assert eventually(lambda: began(fab) == 64, 120)
    job = status_of(fab, "x")["nodes"][BAD]["processes"][0]["pid"]
    fab.cluster.kill_sshd(BAD)
    for pid in fab.processes():
        if b"TORCHFAB_NODE_RANK=%d\0" % BAD in environment(pid) or pid == job:
            os.kill(pid, signal.SIGKILL)
    shown = fab("status", "x", config=PATIENT)
    assert shown.rc == 1, shown
    row.output_has(shown.stdout, f"{name} ")
    assert "node[1-36,38-64]  running" in shown.stdout, shown
    asked = fab("why", "x", config=PATIENT)
    row.output_has(asked.stdout, f"{name}: ")
    fab.cluster.start_sshd(BAD)
    row.logs(*(f"node{index + 1} [{index}] begin" for index in range(64)))
    row.stopped()


def began(fab: Fab) -> int:
    """Return how many ranks have logged."""
    return sum("begin" in path.read_text() for path in fab.node_dir.glob("jobs/x-*/node-*/*/output.log"))


def environment(pid: int) -> bytes:
    """Return the environment of a process; empty if it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        return file.read()
    return b""

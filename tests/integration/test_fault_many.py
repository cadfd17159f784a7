"""The fault matrix, one of many hosts: a launch fails as a whole, and a running job reports the host that died.

There are 64 hosts with --thorough, which `inv reliability` passes: each takes 2 s of CPU time.
"""

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

SLEEP = "import time\nprint('begin', flush=True)\ntime.sleep(600)\n"
PATIENT = {"connect_timeout_s": 30, "prepare_timeout_s": 120, "start_timeout_s": 60, "answer_timeout_s": 60}


@pytest.fixture
def many(_no_leftovers: None, thorough: bool) -> Iterator[Fab]:
    """The real `fab`, with many hosts on loopback addresses."""
    try:
        cluster = Cluster.up(nodes=64 if thorough else 20, kind="loopback", user=ordinary_user())
    except RehearsalError as error:
        absent(str(error))
    with cluster:
        fab = Fab(cluster)
        yield fab
        fab.close()


def test_one_of_many_hosts_is_down_and_later_one_dies(many: Fab, matrix: Matrix) -> None:
    fab, count = many, many.cluster.layout.size
    bad = count * 9 // 16  # neither the first nor the last
    name = f"node{bad + 1}"
    fab.write("sleep.py", SLEEP)
    lines = [line for line in fab.cluster.hostfile.read_text().splitlines() if line and not line.startswith("#")]
    gpus = fab.write("gpus", "\n".join(lines))
    words = ("launch-per-gpu", "--gpufile", str(gpus), "--name", "x", "--grace", "1", "--", "sleep.py")

    row = matrix.row("one of many hosts is down at the launch", fab)
    row.without(2, 3)
    fab.cluster.kill_sshd(bad)
    refused = fab(*words, config=PATIENT, timeout_s=200)
    fab.cluster.start_sshd(bad)
    row.fails_with(refused, "refused the connection", f"{name}:")
    assert f"1 of {count} hosts failed; nothing was started" in refused.stderr, refused
    row.nothing_left(within_s=10, folders=True)

    row = matrix.row("one of many hosts dies while the job runs", fab)
    row.without(3)
    ok(fab(*words, config=PATIENT, timeout_s=200))
    assert eventually(lambda: began(fab) == count, 120)
    job = status_of(fab, "x")["nodes"][bad]["processes"][0]["pid"]
    fab.cluster.kill_sshd(bad)
    for pid in fab.processes():
        if b"TORCHFAB_NODE_RANK=%d\0" % bad in environment(pid) or pid == job:
            os.kill(pid, signal.SIGKILL)
    shown = fab("status", "x", config=PATIENT)
    assert shown.rc == 1, shown
    row.output_has(shown.stdout, f"{name} ")
    assert f"node[1-{bad},{bad + 2}-{count}]  running" in shown.stdout, shown
    asked = fab("why", "x", config=PATIENT)
    row.output_has(asked.stdout, f"{name}: ")
    fab.cluster.start_sshd(bad)
    row.logs(*(f"node{index + 1} [{index}] begin" for index in range(count)))
    row.stopped()


def began(fab: Fab) -> int:
    """Return how many ranks have logged."""
    return sum("begin" in path.read_text() for path in fab.node_dir.glob("jobs/x-*/node-*/*/output.log"))


def environment(pid: int) -> bytes:
    """Return the environment of a process; empty if it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        return file.read()
    return b""

"""`fab network` between real hosts with a slow link among them: torch, gloo, traffic control."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import pytest

from tests.integration.fab import Done, Fab
from tests.support import require

SLOW = ("root", "tbf", "rate", "50mbit", "burst", "64kbit", "latency", "50ms")


def measure(fab: Fab, *words: str) -> Done:
    return fab("network", "--hostfile", str(fab.cluster.hostfile), *words, timeout_s=110)


def test_a_slow_node_is_named_and_the_job_is_removed(fab3: Fab) -> None:
    tc = ("ip", "netns", "exec", fab3.cluster.layout.nodes[2].namespace, require("tc"), "qdisc")
    subprocess.run([*tc, "add", "dev", "eth0", *SLOW], check=True)
    try:
        done = measure(fab3, "--seconds", "5", "--json")
    finally:
        subprocess.run([*tc, "del", "dev", "eth0", "root"], check=True)
    assert done.rc == 1, done
    found = json.loads(done.stdout)
    assert found["slow"]["nodes"] == ["node3"], found
    assert found["slow"]["links"] == [], found
    assert found["backend"] == "gloo"
    assert {each["name"] for each in found["interfaces"]} == {"eth0"}
    assert len(found["pairs"]) == 3
    assert found["sizes"][0]["bytes"] == 1024
    assert max(each["busbw_gbit"] for each in found["sizes"]) < 0.06  # all wait for the slow node
    fab3.assert_nothing_left(within_s=10)


def test_a_failed_measurement_keeps_its_job_and_names_it(fab3: Fab) -> None:
    done = measure(fab3, "--seconds", "2", "--env", "GLOO_SOCKET_IFNAME=nosuch0")
    assert done.rc == 1, done
    assert done.stdout == "", done
    (job,) = fab3.jobs()
    assert f"fab why {job}" in done.stderr, done
    assert "nosuch0" in fab3("logs", job).stdout
    assert fab3.processes() == {}


def test_ctrl_c_leaves_nothing(fab3: Fab) -> None:
    process = fab3.start("network", "--hostfile", str(fab3.cluster.hostfile), "--seconds", "60")
    deadline = time.monotonic() + 30
    while len(fab3.processes()) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)  # during the measurement, on most machines; at any time, nothing may be left
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    fab3.assert_nothing_left(within_s=10)


@pytest.mark.parametrize("words", [("--seconds", "0"), ("--backend", "mpi"), ("--backend", "nccl")])
def test_an_impossible_measurement_is_an_error_and_leaves_nothing(fab3: Fab, words: tuple[str, ...]) -> None:
    done = measure(fab3, *words)
    assert done.rc == 2, done
    assert words[0] in done.stderr, done
    fab3.assert_nothing_left(within_s=10)

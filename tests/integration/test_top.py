"""`fab top` and `fab metrics` on real nodes: numbers, a job's pace, a node that goes away and comes back, its end."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.fab import Fab
from tests.integration.faults_injected import start_up_file
from tests.integration.jobs import host_line, ok, two

SECRET = "hunter2-and-more"
STEPS = """import os, time
for step in range(1, 2000):
    print(f"step={step}/2000", os.environ["MY_TOKEN"], flush=True)
    time.sleep(0.1)
"""
SMI = """#!/bin/sh
case "$1" in
--query-gpu*) echo "0, GPU-1, NVIDIA H100 80GB HBM3, 100, 95.10, 700.00, 71203, 81559, 41";;
*) echo "GPU-1, 4711, 70110, /venv/bin/python";;
esac
"""


def hosts(fab: Fab) -> tuple[str, str]:
    return ("--hostfile", str(fab.cluster.hostfile))


def once(fab: Fab, *words: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(ok(fab("top", "--once", "--json", *words)).stdout)
    return document


def test_top_shows_step_rate_and_marks_the_jobs_idle_gpus(fab: Fab, tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    fab.write("steps.py", STEPS)
    ok(fab(*two(fab, "--name", "paced", "--env", f"MY_TOKEN={SECRET}", "--", "steps.py")))
    fab("logs", "paced", "--lines", "1")
    with start_up_file(fab.cluster.node(1), f"PATH='{tmp_path}':$PATH\n"):
        found = once(fab, "paced")
    assert found["job"]["job"] == "paced"
    assert found["job"]["state"] == "running"
    assert found["job"]["step"] >= 1
    assert found["job"]["stall"]["line"].startswith("step=")
    assert SECRET not in json.dumps(found)  # printed in every line, and hidden
    first, second = found["nodes"]
    assert first["gpus"] == []
    assert first["memory_total_bytes"] > first["memory_bytes"] > 0
    assert second["gpus"][0]["processes"][0]["pid"] == 4711
    assert second["gpus"][0]["mark"] == "low power: waits or hangs"
    by_hosts = ok(fab("top", "--once", *hosts(fab)))  # the latest job runs on them
    assert "job paced: running, step " in by_hosts.stdout, by_hosts
    ok(fab("metrics", "paced", "--output", "torchfab.prom"))
    measured = text_string_to_metric_families((fab.workdir / "torchfab.prom").read_text())
    samples = {(each.name, *each.labels.values()): each.value for family in measured for each in family.samples}
    assert {samples["torchfab_up", host_line(fab, index)] for index in (0, 1)} == {1}
    assert samples["torchfab_job_state", "paced", "running"] == 1
    assert samples["torchfab_job_step", "paced"] >= found["job"]["step"]
    ok(fab("stop", "paced", "--grace", "0"))


def lines_of(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return (json.loads(line) for line in process.stdout)


def test_a_lost_node_is_unreachable_reappears_and_ctrl_c_ends_top(fab: Fab) -> None:
    process = fab.start("top", "--json", "--interval", "0.2", *hosts(fab))

    def wait_until(reachable: bool) -> dict[str, Any]:
        for found in lines_of(process):
            node = found["nodes"][1]
            if (node["cpu_percent"] is not None) if reachable else bool(node["error"]):
                return dict(found)
        raise AssertionError(process.communicate())

    wait_until(reachable=True)
    fab.cluster.kill_sshd(1)
    try:
        assert wait_until(reachable=False)["nodes"][0]["cpu_percent"] is not None  # the other one continues
    finally:
        fab.cluster.start_sshd(1)
    wait_until(reachable=True)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")


def test_a_host_that_does_not_answer_gives_exit_code_1(fab: Fab) -> None:
    done = fab("-t", "1", "-H", "node1,nowhere.invalid", "top", "--once")
    assert done.rc == 1, done
    assert "nowhere.invalid" in done.stdout, done
    assert "unreachable: the name does not resolve" in done.stdout, done


def test_on_a_terminal_top_updates_in_place(fab: Fab) -> None:
    master, slave = pty.openpty()
    words = fab.argv("top", "--interval", "0.2", *hosts(fab))
    env = {**os.environ, "FABRIC_TORCHFAB_RECORDS": str(fab.records), "TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
    os.close(slave)
    seen = b""
    while seen.count(b"node2") < 2:
        seen += os.read(master, 4096)
    os.killpg(process.pid, signal.SIGINT)
    while True:
        try:
            seen += os.read(master, 4096)
        except OSError:  # the terminal was closed
            break
    os.close(master)
    assert process.wait(10) == 0
    assert b"\x1b[?1049h" in seen  # the terminal's alternate screen, and back
    assert b"\x1b[?1049l" in seen
    assert b"Traceback" not in seen


@pytest.mark.parametrize("text", ["0", "x", "-1"])
def test_a_wrong_interval_is_an_error(fab: Fab, text: str) -> None:
    done = fab("top", "--interval", text, *hosts(fab))
    assert done.rc == 2, done
    assert "--interval" in done.stderr, done

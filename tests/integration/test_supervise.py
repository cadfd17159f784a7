"""`fab supervise`: a job that is seen through everything, on three hosts and a spare."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from testbed import Cluster
from tests.integration.conftest import _up
from tests.integration.fab import BIGRAM, Done, Fab, eventually
from tests.integration.faults import Matrix
from tests.integration.faults_injected import fake_program
from tests.integration.jobs import ok, status_of

# Attempt k of a rank does the k-th action of its argument, and the last one after that.
FATE = """
import os, sys, time, signal
out, rank = os.environ["OUT"], int(os.environ["RANK"])
with open(f"{out}/runs-{rank}", "a+") as runs:
    runs.write("x")
    runs.seek(0)
    run = len(runs.read())
fates = sys.argv[1].split(",")
fate = fates[min(run, len(fates)) - 1]
first = 1 if fate.endswith("again") else 10 * run
for step in range(first, first + 3):
    print(f"step={step} of rank {rank} in run {run}", flush=True)
def load(batch):
    raise ValueError(f"batch {batch} is bad, says the secret {os.environ.get('A_TOKEN')}")
if rank == 1 and fate.startswith("raise"): load(17)
if rank == 1 and fate.startswith("kill"): os.kill(os.getpid(), signal.SIGKILL)
if fate != "good": time.sleep(300)
"""
QUICK = ("--grace", "1")
SETTINGS = {"backoff_s": 0.1, "lost_s": 3, "failure_grace_s": 1, "prepare_timeout_s": 20}


@pytest.fixture(scope="module")
def four_hosts(_no_leftovers: None) -> Iterator[Cluster]:
    """Four nodes as root in network namespaces."""
    with _up("netns", user=None, nodes=4) as cluster:
        yield cluster


@pytest.fixture
def fab(four_hosts: Cluster) -> Iterator[Fab]:
    """The real `fab`, with four hosts."""
    made = Fab(four_hosts)
    made.write("fate.py", FATE)
    yield made
    for index in range(4):
        four_hosts.heal(index)
    made.close()


def launch(fab: Fab, fates: str, *words: str, nodes: int = 2) -> tuple[str, ...]:
    """Return the arguments of a supervised launch of one rank on each of the first hosts."""
    gpufile = fab.write("my_gpus", "".join(f"{host}\n" for host in fab.cluster.hosts))
    task = ("-t", "2", "launch-per-gpu", "--gpufile", str(gpufile), "--name", "x", "--nodes", str(nodes))
    return (*task, "--supervise", *QUICK, "--env", f"OUT={fab.workdir}", *words, "--", "fate.py", fates)


def history(fab: Fab, job: str = "x") -> list[str]:
    """Return the output of `fab jobs --events` without the times, and without numbers that differ from run to run."""
    lines = ok(fab("jobs", job, "--events")).stdout.splitlines()
    plain = [re.sub(r"^\S+ \S+  ", "", line) for line in lines]
    plain = [re.sub(r"at step \d+", "at step N", line) for line in plain]
    return [re.sub(r"after (\d+ min )?\d+ s|:\d{4,5}\b|(\d+ min )?\d+ s:", "N", line) for line in plain]


def events(fab: Fab, name: str, job: str = "x") -> list[dict[str, Any]]:
    """Return the events of one kind."""
    return [event for event in json.loads(ok(fab("jobs", job, "--events", "--json")).stdout) if event["event"] == name]


def supervised(fab: Fab, fates: str, *words: str, env: dict[str, str] | None = None, **config: object) -> Done:
    """Launch under supervision, and wait for the end."""
    return fab(*launch(fab, fates, *words), config={**SETTINGS, **config}, env=env, timeout_s=100)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a `fab` with SIGKILL."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def status_if_there(fab: Fab) -> dict[str, Any]:
    """Return `fab status --json` of the job, as soon as there is one."""
    return status_of(fab, "x") if (fab.records / "x" / "record.json").exists() else {}


# ---- what it decides


def test_progress_allows_restarts_and_keeps_earlier_attempts(fab: Fab) -> None:
    done = supervised(fab, "raise,kill,good", "--restarts", "1")
    assert done.rc == 0, done
    events_shown = history(fab)
    assert [line for line in events_shown if line.startswith("restart")] == [
        "restart 1 of 1: attempt 2 on node[1-2]",
        "restart 1 of 1: attempt 3 on node[1-2]",
    ]
    assert events_shown[-1] == "job x succeeded after 2 restarts"
    assert "step=10" in ok(fab("logs", "x", "--attempt", "1")).stdout
    assert "step=30" in ok(fab("logs", "x")).stdout
    assert "ValueError" in fab("why", "x", "--attempt", "1").stdout
    found = status_of(fab, "x")
    assert (found["state"], found["attempt"], found["supervisor"]) == ("succeeded", 3, None)
    assert fab("wait", "x").rc == 0
    assert fab.processes() == {}
    ok(fab("jobs", "x", "--remove"))
    fab.assert_nothing_left()


def test_the_same_traceback_twice_without_progress_ends_supervision(fab: Fab) -> None:
    done = supervised(fab, "raise-again", env={"A_TOKEN": "hunter22"})
    assert done.rc == 1, done
    assert history(fab)[-1] == (
        "job x will not be restarted after 1 restart: the same failure as in attempt 1, and no progress in between: "
        "a bug in the script"
    )
    assert "ValueError: batch 17 is bad" in done.stdout
    assert fab.processes() == {}
    for path in fab.records.rglob("*"):
        assert not path.is_file() or b"hunter22" not in path.read_bytes(), path


def test_restarts_without_progress_are_limited(fab: Fab) -> None:
    done = supervised(fab, "kill-again", "--restarts", "2")
    assert done.rc == 137, done
    assert (
        history(fab)[-1]
        == "job x will not be restarted after 2 restarts: 2 restarts without progress; --restarts allows no more"
    )


# A stand-in whose GPU is held, by a process that has ended, the first three times that it is asked for processes.
HELD_SMI = """case "$*" in
*--query-gpu=*) echo "0, GPU-1, NVIDIA H100 80GB HBM3, 0, 95.10, 700.00, 71203, 81559, 41";;
*--query-compute-apps=gpu_uuid*)
    echo x >> 'ASKED'
    if [ $(wc -l < 'ASKED') -le 3 ]; then echo "GPU-1, 4194305, 70656, python"; else echo "GPU-1, 1, 70656, init"; fi;;
*--query-compute-apps=*) ;;
*) echo "No devices were found"; exit 6;;
esac"""


def test_a_restart_waits_until_the_gpus_memory_is_free(fab: Fab, matrix: Matrix) -> None:
    row = matrix.row("a restart while GPU memory is still held", fab)
    row.without(2, 3)
    asked = fab.workdir / "asked"
    with fake_program(fab.cluster.node(1), "nvidia-smi", HELD_SMI.replace("ASKED", str(asked))):
        done = supervised(fab, "raise,good")
    assert done.rc == 0, done
    held = "GPU 0 of node2 holds 69 GiB of 4194305, which has ended"
    texts = [re.sub(r"after \d+ s", "after N s", event["text"]) for event in events(fab, "gpu-memory")]
    assert texts[0].endswith(f" for free GPU memory: {held}"), texts
    assert texts[1:] == ["GPU memory is free after N s"]
    assert asked.read_text() == "x\n" * 4
    row.output_has("\n".join(texts), "for free GPU memory")
    row.nothing_left()


def test_stop_wins_over_a_restart(fab: Fab) -> None:
    process = fab.start(*launch(fab, "kill", "--backoff", "60"), config=SETTINGS)
    assert eventually(lambda: bool(status_if_there(fab)) and bool(events(fab, "waiting")), 90), history(fab)
    ok(fab("stop", "x"))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    # The supervisor and `fab stop` write at the same time, in either order.
    assert set(history(fab)[-2:]) == {"job x was stopped on request: no restart", "stopped by fab stop"}
    assert fab.processes() == {}
    refused = fab("supervise", "x")
    assert refused.rc == 2
    assert "was stopped with fab stop" in refused.stderr


# ---- the supervisor


def test_a_job_has_one_supervisor_and_a_new_one_keeps_the_counters(fab: Fab) -> None:
    process = fab.start(*launch(fab, "kill,wait-again,good", "--restarts", "2"), config=SETTINGS)
    assert eventually(lambda: status_if_there(fab).get("attempt") == 2, 90)
    second = fab("supervise", "x")
    assert second.rc == 2, second
    assert f"already has a supervisor: pid {status_of(fab, 'x')['supervisor']['pid']}" in second.stderr
    kill(process)
    assert status_of(fab, "x")["state"] == "running"
    assert "its supervisor has ended; to resume: fab supervise x" in fab("status", "x").stdout
    ok(fab("supervise", "x", "--tmux", "--stall", "4", config=SETTINGS))
    assert "supervised by pid" in fab("status", "x").stdout
    assert eventually(lambda: bool(events(fab, "end")), 90), history(fab)
    events_shown = history(fab)
    assert "supervision resumed: attempt 2 on node[1-2], spare node[3-4]; " in "\n".join(events_shown)
    assert "restart 2 of 2: attempt 3 on node[1-2]" in events_shown
    assert events_shown[-1] == "job x succeeded after 2 restarts"
    assert "time.sleep" in (fab.records / "x" / "stacks-2.txt").read_text()
    assert eventually(lambda: not fab.sessions() - fab.sessions_before, 60)


def test_after_ctrl_c_the_job_runs_and_supervise_needs_the_secrets(fab: Fab) -> None:
    words = launch(fab, "wait", "--env", "A_TOKEN=hunter22")
    process = fab.start(*words, config=SETTINGS)
    assert eventually(lambda: bool(status_if_there(fab).get("supervisor")), 60)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "to resume: fab supervise x" in stderr
    assert status_of(fab, "x")["state"] == "running"
    refused = fab("supervise", "x")
    assert refused.rc == 2
    assert "job x needs A_TOKEN in its environment" in refused.stderr


# ---- notifications


class Listener(BaseHTTPRequestHandler):
    """Record the posted events."""

    posted: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_a_command_or_url_gets_the_events(fab: Fab) -> None:
    Listener.posted = []
    server = HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/"
        assert supervised(fab, "raise,good", "--notify", url).rc == 0
    finally:
        server.shutdown()
        server.server_close()
    assert [each["event"] for each in Listener.posted] == ["outcome", "restart", "outcome", "end"]
    assert {each["job"] for each in Listener.posted} == {"x"}
    ok(fab("jobs", "x", "--remove"))
    for path in fab.workdir.glob("runs-*"):
        path.unlink()
    script = fab.write("tell.py", "import os, sys\nopen('told', 'a').write(os.environ['TORCHFAB_EVENT'] + ' ')\n")
    assert supervised(fab, "raise,good", "--notify", f"python3 {script}").rc == 0
    assert (fab.workdir / "told").read_text() == "outcome restart outcome end "


# ---- everything in one job


TRAINING = (
    *("--max-steps", "60", "--batch-size", "2", "--seq-length", "32", "--eval-size", "8", "--log-freq", "1"),
    *("--ckpt-freq", "4", "--eval-freq", "0", "--experiment-name", "it", "--save-dir"),
)


class Training:
    """A training on two of three hosts, and the faults injected into it."""

    def __init__(self, fab: Fab, cache: Path) -> None:
        self.fab = fab
        fab.take(*BIGRAM)
        self.cache = ("--dataset-cache-root", str(cache))
        self.hostfile = fab.write("three", "".join(f"{host}\n" for host in fab.cluster.hosts[:3]))

    def words(self, name: str, *words: str) -> tuple[str, ...]:
        """Return the arguments of its launch."""
        # The nodes share the cores of this machine, and the faults take time.
        words = ("--env", "OMP_NUM_THREADS=1", "--env", "PAUSE_S=0.2", *words)
        task = ("-t", "2", "launch-per-node", "--hostfile", str(self.hostfile), "--nproc-per-node", "1")
        script = ("--", "bigram.py", *TRAINING, f"runs-{name}", *self.cache)
        return (*task, "--nodes", "2", "--name", name, *QUICK, *words, *script)

    def loss(self, name: str) -> float:
        """Return the loss of the last step."""
        lines = (self.fab.workdir / f"runs-{name}" / "it" / "log.jsonl").read_text().splitlines()
        last = [json.loads(line) for line in lines if '"loss"' in line][-1]
        assert last["step"] == 60
        return float(last["loss"])

    def reaches(self, attempt: int, step: int) -> None:
        """Wait until an attempt has reached a step."""
        record = self.fab.records / "it" / "record.json"

        def there() -> bool:
            if not record.exists() or json.loads(record.read_text()).get("attempt") != attempt:
                return False
            job_id = json.loads(record.read_text())["job_id"]
            logs = self.fab.node_dir.glob(f"jobs/{job_id}/node-*/agent/logs/*/attempt_*/*/stdout.log")
            steps = [int(each) for path in logs for each in re.findall(r"step=(\d+)/", path.read_text())]
            return max(steps, default=0) >= step

        assert eventually(there, 180), (attempt, step, history(self.fab, "it"))

    def pids(self, attempt: int) -> list[int]:
        """Return the pids of all ranks of an attempt, as soon as all exist, long before the first step."""
        found: list[int] = []

        def there() -> bool:
            if not (self.fab.records / "it" / "record.json").exists():
                return False
            status = status_of(self.fab, "it")
            found[:] = [int(rank["pid"]) for node in status["nodes"] for rank in node["ranks"]]
            return status["attempt"] == attempt and len(found) == 2

        assert eventually(there, 180), history(self.fab, "it")
        return found


@pytest.mark.timeout(900)  # four starts of a training and one undisturbed, on a machine that may be busy
def test_a_training_survives_crash_hang_lost_node_and_dead_supervisor(
    fab: Fab, cache: Path, four_hosts: Cluster
) -> None:
    training = Training(fab, cache)
    ok(fab(*training.words("undisturbed", "--follow"), timeout_s=300))
    process = fab.start(*training.words("it", "--supervise"), config=SETTINGS)
    pids = training.pids(1)
    training.reaches(1, 10)
    os.kill(pids[1], signal.SIGKILL)
    pids = training.pids(2)
    training.reaches(2, 24)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    kill(process)  # the supervisor, before it notices
    process = fab.start("-t", "2", "supervise", "it", "--stall", "5", config=SETTINGS)
    assert eventually(lambda: len(events(fab, "running", "it")) == 2, 180), history(fab, "it")
    kill(process)  # again: on a busy machine the start of a training is silent for longer
    process = fab.start("-t", "2", "supervise", "it", "--stall", "300", config=SETTINGS)
    training.reaches(3, 38)
    four_hosts.partition(1)  # permanently: its processes continue, and are unreachable
    assert eventually(lambda: bool(events(fab, "end", "it")), 240), history(fab, "it")
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, (stdout, stderr)
    assert abs(training.loss("it") - training.loss("undisturbed")) < 1e-6
    events_shown = [line for line in history(fab, "it") if not line.startswith("waiting")]
    assert_reads(
        events_shown,
        "launched",
        "supervised: attempt 1 on node[1-2], spare node3; 3 restarts without progress, "
        "300 s without a log line count as a hang",
        "attempt 1 failed N at step N: rank 1 on node2: SIGKILL came from outside",
        "attempt 1: no process of it is left on node[1-2]",
        "restart 1 of 3: attempt 2 on node[1-2]",
        "attempt 2 runs: 2 ranks, master node1",
        "attempt 2 is at step",
        "supervision resumed: attempt 2 on node[1-2], spare node3",
        "no rank has logged for N it hangs; job it: ",  # and where each rank was, which differs from run to run
        "attempt 2 failed N at step N",
        "attempt 2: no process of it is left on node[1-2]",
        "restart 1 of 3: attempt 3 on node[1-2]",
        "attempt 3 runs: 2 ranks",
        "supervision resumed: attempt 3 on node[1-2], spare node3",
        "attempt 3 is at step",
        "node2 cannot be reached",
        "attempt 3 failed N at step N",
        "attempt 3: no process of it is left on node1; on node2 it may still be running",
        "node2 is quarantined from now on (fab lemons): ",
        "a node is replaced: attempt 4 on node[1,3]",
        "attempt 4 runs: 2 ranks",
        "attempt 4 is at step",
        "attempt 4 succeeded N at step N",
        "job it succeeded after 3 restarts",
    )
    assert "node2" in ok(fab("lemons")).stdout
    skipped = fab(*training.words("next", "--supervise", "--dry-run"))
    assert "lemons, left out: node2; for the reasons: fab lemons" in skipped.stderr, skipped
    four_hosts.heal(1)
    assert fab("stop", "it").rc == 0
    assert fab.processes() == {}
    ok(fab("lemons", "--forgive", "node2"))


def assert_reads(events_shown: list[str], *beginnings: str) -> None:
    """Assert that lines with these beginnings occur in this order, with any lines between."""
    rest = iter(events_shown)
    for beginning in beginnings:
        assert any(line.startswith(beginning) for line in rest), (beginning, "\n".join(events_shown))

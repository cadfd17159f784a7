"""A running job: the hang alarm, and the stacks of its ranks; real sshd, real py-spy."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from tests.integration.fab import Fab, eventually
from tests.integration.jobs import bare_python, gpufile, host_line, ok, status_of, two

# Logs, stays silent until its file appears, logs again, and ends.
SILENT = """
import os, sys, time
print("step 7 of rank", os.environ["RANK"], flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
print("on we go", flush=True)
time.sleep(1)
"""


# ---- the hang alarm


def test_a_silent_job_is_reported_by_status_and_once_by_follow(fab: Fab) -> None:
    fab.write("silent.py", SILENT)
    go = fab.workdir / "go"
    ok(fab(*two(fab, "--name", "silent", "--", "silent.py", str(go))))
    follower = fab.start("logs", "silent", "--follow", "--stall", "1.5")
    waiting = fab.start("wait", "silent", config={"stall_s": 1.5})
    silence = {}

    def is_stalled() -> bool:
        silence.update(json.loads(ok(fab("status", "silent", "--json", "--stall", "1.5")).stdout)["stall"])
        return bool(silence["stalled"])

    assert eventually(is_stalled, 30)
    assert silence["line"] == f"step 7 of rank {silence['rank']}"
    shown = ok(fab("status", "silent", "--stall", "1")).stdout
    assert "silent: no rank has logged for" in shown
    assert "the last line: " in shown
    assert "fab stacks silent" in shown
    assert "no rank has logged" not in ok(fab("status", "silent")).stdout  # 300 s have not passed
    for process in (follower, waiting):
        assert process.stderr
        assert any("silent: no rank has logged for" in line for line in process.stderr)  # reads until the alarm
    go.touch()
    rest = [process.communicate(timeout=60)[1] for process in (follower, waiting)]
    assert not any("no rank has logged" in line for line in rest), rest  # once
    assert "it logs again, after" in rest[0]


# ---- fab stacks

# Rank 1 is late for the collective that the others wait in.
LATE = """
import os, sys, time
def wait_for_the_others():
    time.sleep(300)
def load_a_slow_shard():
    time.sleep(300)
print("up", flush=True)
load_a_slow_shard() if os.environ["RANK"] == "1" else wait_for_the_others()
"""
REDUCE = """
import os, time
import torch
import torch.distributed as dist
def load_a_slow_shard():
    time.sleep(300)
def reduce_loss(loss):
    dist.all_reduce(loss)
dist.init_process_group("gloo")
print("up", flush=True)
if dist.get_rank() == 1:
    load_a_slow_shard()
reduce_loss(torch.ones(1))
"""
# No process may trace it, not even of its own user; it handles the signal.
PRIVATE = """
import ctypes, faulthandler, os, signal, time
if os.environ["RANK"] == "0":
    faulthandler.register(signal.SIGUSR2, all_threads=True)
def doze():
    time.sleep(300)
time.sleep(1)  # until it is tracked as a rank
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
print("up", flush=True)
doze()
"""


def launched(fab: Fab, name: str, script: str, ranks: int, *words: str) -> None:
    """Launch a script on both hosts, and wait until all ranks are up."""
    fab.write(f"{name}.py", script)
    lines = gpufile(fab, *[index % 2 for index in range(ranks)])
    ok(fab("launch-per-gpu", "--gpufile", lines, "--name", name, *words, "--", f"{name}.py"))
    assert eventually(lambda: ok(fab("logs", name, "--no-fold")).stdout.count("up") >= ranks, 60)


def stacks(fab: Fab, name: str, *words: str, rc: int = 0, **more: Any) -> dict[str, Any]:
    done = fab("stacks", name, "--json", *words, **more)
    assert done.rc == rc, done
    return dict(json.loads(done.stdout))


def test_a_stopped_rank_comes_first_and_then_a_late_one(fab: Fab) -> None:
    launched(fab, "late", LATE, 4)
    shown = ok(fab("stacks", "late")).stdout
    sentence = "rank 1 is in time.sleep of load_a_slow_shard, 3 others wait in time.sleep of wait_for_the_others"
    assert shown.splitlines()[0] == f"job late: {sentence}"
    assert "  > load_a_slow_shard (late.py:6)   time.sleep(300)" in shown
    found = stacks(fab, "late")
    assert [node["py_spy"] for node in found["nodes"]] == ["beside the interpreter"] * 2
    victim = next(each for each in found["ranks"] if each["rank"] == 2)
    os.kill(victim["pid"], signal.SIGSTOP)
    try:
        shown = ok(fab("stacks", "late")).stdout
    finally:
        os.kill(victim["pid"], signal.SIGCONT)
    assert shown.splitlines()[0].startswith(
        "job late: rank 2 is stopped by a signal (state T), in time.sleep of wait_for"
    )
    assert f"to let rank 2 go on: kill -CONT {victim['pid']}, on {victim['host']}" in shown
    assert {each["rank"] for each in stacks(fab, "late", "--rank", "0,3")["ranks"]} == {0, 3}
    # A node that does not answer is named, and the other's answer is complete.
    fab.cluster.kill_sshd(1)
    try:
        cut = stacks(fab, "late", rc=1)
    finally:
        fab.cluster.start_sshd(1)
    assert list(cut["failed"]) == [host_line(fab, 1)]
    assert [each["rank"] for each in cut["ranks"]] == [0, 2]


def test_a_rank_that_is_late_for_all_reduce_is_named(fab: Fab) -> None:
    launched(fab, "reduce", REDUCE, 2)
    sentence = "rank 1 is in time.sleep of load_a_slow_shard, rank 0 waits in all_reduce of reduce_loss"
    assert eventually(lambda: stacks(fab, "reduce")["summary"] == sentence, 30), stacks(fab, "reduce")["summary"]
    assert "pthread_cond" in ok(fab("stacks", "reduce", "--native", "--rank", "0", "--all")).stdout


def test_py_spy_is_sent_to_nodes_without_one_and_removed(fab: Fab) -> None:
    launched(fab, "bare", LATE, 2, "--python", str(bare_python(fab)))
    before = set(Path("/tmp").glob("torchfab-*"))
    found = stacks(fab, "bare")
    assert [node["py_spy"] for node in found["nodes"]] == ["sent", "sent"]
    assert [len(group["ranks"]) for group in found["groups"]] == [1, 1]
    assert not set(Path("/tmp").glob("torchfab-*")) - before


def test_without_ptrace_the_signal_is_tried_and_the_error_explained(loopback_fab: Fab) -> None:
    fab = loopback_fab
    launched(fab, "private", PRIVATE, 2)
    found = stacks(fab, "private", rc=1)
    by_rank = {each["rank"]: each for each in found["ranks"]}
    assert by_rank[0]["by"] == "SIGUSR2"
    assert by_rank[0]["threads"][0]["frames"][0]["function"] == "doze"
    assert "the node refused to let py-spy look into it" in by_rank[1]["problem"]
    assert "by signal: it does not catch SIGUSR2" in by_rank[1]["problem"]
    assert "faulthandler.register" in by_rank[1]["fix"]
    silent = stacks(fab, "private", rc=1, config={"stacks_signal": ""})
    assert not any(each["threads"] for each in silent["ranks"])
    assert status_of(fab, "private")["state"] == "running"

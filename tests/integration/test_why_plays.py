"""Who failed first, in plays of two ranks on two hosts: status, wait and why name the same one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.fab import Fab, eventually
from tests.integration.jobs import ok, two

# What gloo raises in the rank that lost the other; a traceback and an exit code are all that is known of it.
PLAY = """
import os, signal, sys, time
out, how, rank = os.environ["OUT"], sys.argv[1], int(os.environ["RANK"])
LOST = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:24750"
def mark(name): open(f"{out}/{name}", "w").close()
def await_mark(name):
    while not os.path.exists(f"{out}/{name}"): time.sleep(0.02)
def load(batch): raise KeyError(f"no label in batch {batch}")
def lose():
    await_mark("over"); time.sleep(0.3)
    raise RuntimeError(LOST)
def log_exception():
    import traceback
    traceback.print_exc(); sys.stderr.flush(); mark("over")
mark(f"ready-{rank}"); await_mark(f"ready-{1 - rank}"); time.sleep(1.2)
if rank == 0: lose()
if how == "early": mark("over"); sys.exit(0)
try: load(17)
except KeyError:
    log_exception()
    if how == "lingers": time.sleep(4); sys.exit(1)
    if how == "exit-0": sys.exit(0)
    if how == "hangs": time.sleep(600)
    if how == "thread-after":
        import threading
        def lost(): raise ConnectionResetError(104, "Connection reset by peer")
        thread = threading.Thread(target=lost); thread.start(); thread.join(); sys.exit(1)
    raise
"""
EXPECTED = {
    "lingers": ("exception", "no label in batch 17"),
    "hangs": ("exception", "no label in batch 17"),
    "exit-0": ("exception", "no label in batch 17"),
    "thread-after": ("exception", "no label in batch 17"),
    "ends-last": ("exception", "no label in batch 17"),
    "early": ("left-early", "had ended with exit code 0"),
}


def shown(fab: Fab, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fab(*words, "--json").stdout)
    return found


@pytest.mark.parametrize("how", EXPECTED)
def test_status_wait_and_why_name_the_same_first_rank(fab: Fab, how: str) -> None:
    fab.write("play.py", PLAY)
    out = fab.workdir / "out"
    out.mkdir()
    ok(fab(*two(fab, "--name", "x", "--env", f"OUT={out}", "--", "play.py", how)))
    assert eventually(lambda: (out / "over").exists(), 30)
    waited = fab("wait", "x", config={"failure_grace_s": 6})
    why = shown(fab, "why", "x")
    assert (why["cause"]["name"], why["first"]["rank"]) == (EXPECTED[how][0], 1), why
    assert EXPECTED[how][1] in why["cause"]["words"]
    assert shown(fab, "status", "x")["first_failure"]["rank"] == 1
    assert "rank 1 on node2 failed first" in waited.stderr, waited
    assert "logs x --rank 1" in waited.stderr


def test_rank_that_ends_at_once_has_its_code_and_its_log(fab: Fab) -> None:
    fab.write(
        "at_once.py", "import os\nprint('begin', flush=True)\nraise ValueError('no file of ' + os.environ['RANK'])\n"
    )
    hosts = str(fab.cluster.hostfile)
    ok(fab("launch-per-node", "--hostfile", hosts, "--nproc-per-node", "2", "--name", "x", "--", "at_once.py"))
    fab("wait", "x", config={"failure_grace_s": 6}, timeout_s=120)
    why, status = shown(fab, "why", "x"), shown(fab, "status", "x")
    first = why["first"]["rank"]
    assert why["cause"]["words"] == f"the script raised ValueError: no file of {first}"
    assert status["first_failure"]["rank"] == first
    assert {rank["code"] for node in status["nodes"] for rank in node["ranks"] if rank["rank"] == first} == {1}
    assert "begin" in fab("logs", "x", "--rank", str(first)).stdout

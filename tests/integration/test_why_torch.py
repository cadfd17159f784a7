"""`fab why` where only torch itself can fail so: ranks that wait in vain for each other."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import Cluster
from tests.integration.fab import Fab, eventually
from tests.integration.faults_injected import other_disk
from tests.integration.jobs import ok, status_of, two
from tests.integration.launcher_contract import hosts

# All-reduce until rank 1 announces its end.
REDUCE = """
import datetime, os, sys, time
import torch, torch.distributed as dist
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=4))
ones = torch.ones(1)
for step in range(100000):
    dist.all_reduce(ones)
    ones /= 2
    if step == 20:
        print("step", step, flush=True)
        open(f"{sys.argv[1]}-{dist.get_rank()}", "w").close()
    time.sleep(0.01)
"""

# Rank 1 lacks the shared memory that it needs; rank 0 waits for it at the store.
SMALL = """
import datetime, os, time
import torch, torch.distributed as dist
if os.environ["RANK"] == "0":
    dist.TCPStore("127.0.0.1", 0, 1, True).wait(["never"], datetime.timedelta(seconds=1))
time.sleep(1)
torch.zeros(2**22).share_memory_()
"""


@pytest.fixture(scope="module")
def waits(netns_cluster: Cluster) -> Iterator[Fab]:
    """Three jobs that wait in vain: `reduce` for a rank, `come` for an agent, both stopped; `gone` for one killed."""
    fab = Fab(netns_cluster)
    fab.write("reduce.py", REDUCE)
    ok(fab(*hosts(fab, "launch-per-node"), "--rdzv-timeout", "4", "--name", "gone", "--", "light.py", "1"))
    os.kill(int(status_of(fab, "gone")["nodes"][0]["processes"][0]["pid"]), signal.SIGKILL)  # it still imports torch
    ok(fab(*hosts(fab, "launch-per-node"), "--rdzv-timeout", "4", "--name", "come", "--", "light.py", "1"))
    os.kill(int(status_of(fab, "come")["nodes"][1]["processes"][0]["pid"]), signal.SIGSTOP)
    ok(fab(*two(fab, "--name", "reduce", "--", "reduce.py", str(fab.workdir / "began"))))
    assert eventually(lambda: (fab.workdir / "began-1").exists(), 60), fab("logs", "reduce")
    os.kill(int(status_of(fab, "reduce")["nodes"][1]["ranks"][0]["pid"]), signal.SIGSTOP)
    yield fab
    fab.close()


def failures(fab: Fab, job: str) -> list[Any]:
    """Return the failures of ranks and processes, as recorded by their supervisors."""
    found = [json.loads(path.read_text()) for path in fab.node_dir.glob(f"jobs/{job}-*/*/*/exit.json")]
    return [end for end in found if end["code"]]


def why(fab: Fab, job: str, *words: str, code: int = 0) -> dict[str, Any]:
    """Return the answer of `fab why --json` as soon as something has failed."""
    assert eventually(lambda: bool(failures(fab, job)), 60), fab("logs", job)
    done = fab(*words, "why", job, "--json")
    assert done.rc == code, done
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_rendezvous_timeout_names_the_node_that_never_joined(waits: Fab) -> None:
    found = why(waits, "come")
    assert (found["cause"]["kind"], found["cause"]["name"]) == ("network", "rendezvous-timeout"), found
    assert found["first"]["host"] == "node1"
    words = "node2 did not join: its agent is stopped by a signal (SIGSTOP) or a debugger"
    assert found["stragglers"] == [{"hosts": ["node2"], "words": words}]


def test_an_unreachable_rendezvous_is_a_consequence(waits: Fab) -> None:
    assert eventually(lambda: len(failures(waits, "gone")) == 2, 60), waits("logs", "gone")
    found = why(waits, "gone")
    assert (found["cause"]["name"], found["first"]["host"]) == ("killed", "node1"), found
    assert found["consequences"] == ["node2: it could not reach the rendezvous"]


def test_small_shared_memory_is_the_cause_not_the_store_timeout(fab: Fab) -> None:
    fab.write("small.py", SMALL)
    with other_disk(fab.cluster.node(1), Path("/dev/shm"), "size=1m"):
        ok(fab(*two(fab, "--name", "x", "--", "small.py")))
        assert eventually(lambda: len(failures(fab, "x")) == 2, 60), fab("logs", "x")
        found = why(fab, "x")
    assert (found["cause"]["kind"], found["cause"]["name"]) == ("memory", "shared-memory"), found
    assert found["consequences"] == ["node1 rank 0: it timed out waiting for another rank at the store of node 0"]


def test_a_gloo_timeout_names_the_rank_that_was_behind(waits: Fab) -> None:
    found = why(waits, "reduce")
    assert (found["cause"]["kind"], found["cause"]["name"]) == ("network", "gloo-timeout"), found
    assert found["first"]["rank"] == 0
    assert "Timed out waiting 4000ms for recv operation" in found["cause"]["words"]
    assert found["stragglers"][0]["words"] == "rank 1 on node2 is stopped by a signal (SIGSTOP) or a debugger"
    assert all(each["hosts"] == ["node2"] for each in found["stragglers"]), found


def test_a_node_with_a_lost_link_is_the_cause(fab: Fab) -> None:
    fab.write("reduce.py", REDUCE)
    ok(fab(*two(fab, "--name", "x", "--", "reduce.py", str(fab.workdir / "began"))))
    assert eventually(lambda: (fab.workdir / "began-1").exists(), 60), fab("logs", "x")
    fab.cluster.partition(1)
    try:
        found = why(fab, "x", "-t", "1", code=1)
    finally:
        fab.cluster.heal(1)
    assert (found["cause"]["kind"], found["cause"]["name"]) == ("node", "node-unreachable"), found
    assert (found["bad_nodes"], found["first"]["rank"]) == (["node2"], 0)
    assert found["failed"]["node2"]["error"].startswith("no answer from"), found


def test_a_killed_rank_is_first_and_lost_connections_follow_from_it(fab: Fab) -> None:
    script = REDUCE.replace(
        "time.sleep(0.01)", "if step == 20 and dist.get_rank(): os._exit(7)  # sys.exit may crash in gloo's threads"
    )
    fab.write("reduce.py", script)
    ok(fab(*two(fab, "--name", "x", "--", "reduce.py", str(fab.workdir / "began"))))
    assert eventually(lambda: len(failures(fab, "x")) == 2, 60), fab("logs", "x")
    found = why(fab, "x")
    assert (found["cause"]["name"], found["first"]["rank"], found["first"]["code"]) == ("exit-code", 1, 7), found
    assert found["consequences"] == ["node1 rank 0: its connection to another rank was lost"]


def test_why_distinguishes_torchruns_sigterm_from_an_outsiders(fab: Fab) -> None:
    words = ("launch-per-node", "--hostfile", str(fab.cluster.hostfile), "--nproc-per-node", "2", "--name", "x")
    ok(fab(*words, "--", "light.py", "90"))
    assert eventually(lambda: [len(node["ranks"]) for node in status_of(fab, "x")["nodes"]] == [2, 2], 30)
    nodes = status_of(fab, "x")["nodes"]
    hit, beside = nodes[1]["ranks"]
    os.kill(int(hit["pid"]), signal.SIGTERM)
    assert eventually(lambda: len(failures(fab, "x")) == 1, 30), fab("logs", "x")
    os.kill(int(nodes[0]["processes"][0]["pid"]), signal.SIGTERM)
    assert eventually(lambda: len(failures(fab, "x")) == 2, 30), fab("logs", "x")
    found = why(fab, "x")
    assert (found["cause"]["kind"], found["cause"]["name"]) == ("killed", "terminated"), found
    assert found["cause"]["words"] == "SIGTERM came from outside: neither torchfab nor its launcher sent it"
    assert (found["first"]["host"], found["first"]["rank"]) == ("node2", hit["rank"])
    by_supervisor = "its supervisor ended it (SIGTERM) after another rank of its node had failed"
    assert f"node2 rank {beside['rank']}: {by_supervisor}" in found["consequences"], found
    asked = [each for each in found["consequences"] if "torchrun received SIGTERM" in each]
    assert asked, found["consequences"]
    assert asked[0].endswith("; not sent by fab stop or its supervisor")

"""Inside the run: collectives of unmodified scripts, by the probe of each rank; real sshd, real torch over gloo."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from tests.integration.fab import Fab, eventually
from tests.integration.jobs import gpufile, ok, status_of

# What the ranks do is in a file: one start of torch serves several tests.
ORDER = """
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
loss, rows = torch.ones(1), [torch.ones(4) for _ in range(3)]
for step in range(5):
    dist.all_reduce(loss)
print("up", flush=True)
if dist.get_rank() == 1:
    dist.all_gather(rows, torch.ones(4))
else:
    dist.all_reduce(loss)
"""
LATE = """
import time
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
data_parallel = dist.new_group([0, 1, 2], group_desc="dp")
def load_a_slow_shard():
    time.sleep(300)
for step in range(3):
    dist.all_reduce(torch.ones(2), group=data_parallel)
print("up", flush=True)
if dist.get_rank() == 2:
    load_a_slow_shard()
dist.all_reduce(torch.ones(2), group=data_parallel)
"""


def launched(fab: Fab, name: str, script: str, *words: str) -> None:
    """Launch a script with three ranks on two hosts, and wait until all are up."""
    fab.write(f"{name}.py", script)
    lines = gpufile(fab, 0, 1, 1)
    ok(fab("launch-per-gpu", "--gpufile", lines, "--name", name, *words, "--", f"{name}.py"))
    assert eventually(lambda: ok(fab("logs", name, "--no-fold")).stdout.count("up") >= 3, 60)


def verdicts(fab: Fab, name: str) -> list[dict[str, Any]]:
    """Return the lines of `fab stacks` about collectives, once there are any."""
    found: list[dict[str, Any]] = []

    def has_any() -> bool:
        found[:] = json.loads(fab("stacks", name, "--json").stdout)["collectives"]
        return bool(found)

    assert eventually(has_any, 30)
    return found


def test_the_rank_that_calls_another_collective_is_named_with_both_lines(fab: Fab) -> None:
    launched(fab, "order", ORDER)
    (found,) = verdicts(fab, "order")
    assert found["words"] == (
        "rank 1 called all_gather no. 6 (float32[4], order.py:10); ranks 0,2 all_reduce no. 6 (float32[1], order.py:12)"
    )
    assert (found["kind"], found["ranks"], found["number"]) == ("order", [1], 6)
    assert f"collectives: {found['words']}" in ok(fab("stacks", "order")).stdout
    assert f"\ncalls  {found['words']}\n" in fab("why", "order").stdout
    ranks = {rank["rank"]: rank for node in status_of(fab, "order")["nodes"] for rank in node["ranks"]}
    os.kill(ranks[2]["pid"], signal.SIGKILL)
    assert fab("wait", "order", timeout_s=120).rc != 0
    ended = fab("why", "order").stdout
    words = found["words"].replace("ranks 0,2", "rank 0")
    assert f"\ncalls  {words}\n" in ended, ended  # as the others were when rank 2 was killed


def test_the_rank_that_never_comes_is_named_with_its_line_and_group(fab: Fab) -> None:
    launched(fab, "late", LATE)
    (found,) = verdicts(fab, "late")
    assert found["words"].startswith(
        "rank 2 has not reached all_reduce no. 4 of group dp, at late.py:8 in load_a_slow_shard; "
        "ranks 0-1 wait there (float32[2], late.py:14) for "
    )
    assert found["group"]["ranks"] == [0, 1, 2]
    ok(fab("stop", "late"))
    assert json.loads(fab("why", "late", "--json").stdout)["collectives"][0]["ranks"] == [2]

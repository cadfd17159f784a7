"""`fab profile` of a DDP script on two hosts, one of them with a wrong clock; real sshd, torch over gloo."""

from __future__ import annotations

import gzip
import json
from typing import Any

from tests.integration.fab import Fab, eventually
from tests.integration.faults_injected import fake_clock, start_up_file
from tests.integration.jobs import ok, status_of, two

TRAIN = """
import os, sys, time
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
torch.set_num_threads(1)
dist.init_process_group("gloo")
late = dist.get_rank() == 1
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(512, 64)), batch_size=32)
model = DistributedDataParallel(torch.nn.Linear(64, 64))
optimizer = torch.optim.SGD(model.parameters(), 1e-3)
end = torch.zeros(1)
for epoch in range(10**6):
    for (rows,) in data:
        if late:
            time.sleep(0.05)
        optimizer.zero_grad()
        model(rows).square().mean().backward()
        optimizer.step()
    if epoch == 0:
        print("up", flush=True)
    end[0] = os.path.exists("over")
    dist.all_reduce(end, op=dist.ReduceOp.MAX)
    if end:
        break
"""


def events_of(path: Any) -> list[dict[str, Any]]:
    """Return the events of a merged trace."""
    with gzip.open(path) as file:
        found: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return found


def check_format(events: list[dict[str, Any]]) -> None:
    """Check what a reader of Chrome traces needs: Perfetto's trace processor is not here."""
    for each in events:
        assert isinstance(each["name"], str), each
        assert each["ph"] in ("M", "X", "i", "s", "t", "f"), each
        assert all(isinstance(each[key], (int, float)) for key in ("pid", "tid", "ts")), each
        assert each["ph"] != "X" or each["dur"] >= 0, each
    arrows: dict[Any, list[str]] = {}
    for each in events:
        if each.get("cat") == "collective":
            arrows.setdefault(each["id"], []).append(each["ph"])
    assert arrows
    assert all(kinds == ["s", "f"] for kinds in arrows.values())


def overlaps(events: list[dict[str, Any]]) -> tuple[int, int]:
    """Return how many collectives of rank 0 and 1 that an arrow joins overlap in time, and how many there are."""
    ends = {
        (each["pid"], each["tid"], each["ts"]): each["ts"] + each["dur"]
        for each in events
        if each["ph"] == "X" and each["name"].startswith("gloo:")
    }
    pairs: dict[int, list[dict[str, Any]]] = {}
    for each in events:
        if each.get("cat") == "collective":
            pairs.setdefault(each["id"], []).append(each)
    spans = [[(each["ts"], ends[each["pid"], each["tid"], each["ts"]]) for each in pair] for pair in pairs.values()]
    return sum(first[1] > second[0] for first, second in spans), len(spans)


def test_ranks_on_two_clocks_come_into_one_trace_and_the_late_one_is_named(fab: Fab) -> None:
    fab.write("train.py", TRAIN)
    with start_up_file(fab.cluster.node(1), fake_clock(300)):
        ok(fab(*two(fab, "--name", "x", "--", "train.py")))
        assert eventually(lambda: fab("logs", "x", "--no-fold").stdout.count("up") == 2, 90)
        found = json.loads(
            ok(fab("profile", "x", "--seconds", "2", "--output", "x.json.gz", "--json", timeout_s=120)).stdout
        )
        (fab.workdir / "over").touch()
        assert eventually(lambda: status_of(fab, "x")["ended"], 60)
        assert status_of(fab, "x")["state"] == "succeeded"  # the profile did not harm it
    assert [each["name"] for each in found["ranks"]] == ["rank 0 on node1", "rank 1 on node2"]
    for each in found["ranks"]:
        assert 0.99 < each["compute"] + each["exposed"] + each["data"] + each["idle"] < 1.01, each
    first, second = found["ranks"]
    assert first["communication"] > 0.5, found  # it waits for the other one
    assert second["communication"] < 0.5, found
    (reduced,) = found["collectives"]
    assert (reduced["operation"], reduced["rank"]) == ("all_reduce", 1)
    assert reduced["count"] > 5
    assert reduced["last"] > 0.9 * reduced["count"]
    assert 0.03 < reduced["late_s"] < 0.3
    events = events_of(fab.workdir / "x.json.gz")
    check_format(events)
    together, pairs = overlaps(events)
    assert pairs == reduced["count"]
    assert together == pairs  # although the clock of node2 is 300 s ahead
    ended = fab("profile", "x")
    assert ended.rc == 2
    assert "job x has ended (succeeded): there is nothing to profile" in ended.stderr


def test_what_cannot_be_profiled_is_refused_with_its_reason(fab: Fab) -> None:
    fab.write("sleep.py", "import time\nprint('up', flush=True)\ntime.sleep(300)")
    ok(fab(*two(fab, "--name", "bare", "--no-probe", "--", "sleep.py")))
    refused = fab("profile", "bare", "--rank", "2")
    assert refused.rc == 2
    assert "job bare has the ranks 0-1, and no rank 2" in refused.stderr
    refused = fab("profile", "bare", "--seconds", "61")
    assert refused.rc == 2
    assert "--seconds is from above 0 to 60" in refused.stderr
    refused = fab("profile", "bare")
    assert refused.rc == 1
    assert "no rank of job bare could be profiled" in refused.stderr
    assert "launched with --no-probe" in refused.stderr
    assert not list(fab.workdir.glob("profile-*"))
    ok(fab("stop", "bare"))

"""The logs of a job on Kubernetes, also while it runs."""

from __future__ import annotations

import json
import time

import pytest

from tests.kube.in_process import Here, until
from tests.kube.pods import condition, ended, pods_of, running, set_status, unschedulable
from tests.runtimes.kubernetes.jobs import finish, launched, start, write_logs


def test_logs_label_lines_and_fold_equal_ones(here: Here) -> None:
    write_logs(here.api, *launched(here))
    assert here.logs() == [
        "gpt2-[0-1] [0-3] step 1",
        "gpt2-[0-1] [0-3] step 2",
        "gpt2-0 [agent] W1120 torchrun 0",
        "gpt2-1 [agent] W1120 torchrun 1",
    ]


def test_logs_select_ranks_line_counts_and_patterns(here: Here) -> None:
    write_logs(here.api, *launched(here))
    assert here.logs(rank="1,2", lines="1") == ["gpt2-[0-1] [1-2] step 2"]
    assert here.logs(grep="torchrun 1$") == ["gpt2-1 [agent] W1120 torchrun 1"]
    assert len(here.logs(lines="1")) == 3  # one of each rank, and of each agent


def test_logs_of_pending_pods_are_empty(here: Here) -> None:
    launched(here)
    assert here.logs() == ["gpt2: pending (gpt2-[0-1]: not scheduled yet)"]


def test_logs_of_older_torchrun_use_local_ranks(here: Here) -> None:
    pods = launched(here)
    start(here.api, *pods)
    here.api.write(pods[1], "[default1]:old")
    assert here.logs(grep="old") == ["gpt2-1 [3] old"]


def test_follow_shows_a_job_from_its_queue_to_its_end(here: Here) -> None:
    here.launch()
    following = here.following()
    first, second = pods_of(here.api, "gpt2")
    set_status(here.api, first, unschedulable("0/1 nodes are available: 1 Insufficient cpu."))
    said = here.prints("cannot be scheduled: 0/1 nodes are available: 1 Insufficient cpu")
    start(here.api, first, second)
    here.api.write(first, "[rank0]:loss=6.9")
    said += here.prints("runs on gpt2-[0-1]", "loss=6.9")
    here.api.write(first, "[rank0]:loss=5.8")
    finish(here.api, 0, first, second)
    assert following.end() == 0
    said += here.output()
    assert [said.count(text) for text in ("loss=6.9", "loss=5.8")] == [1, 1]
    assert said.index("loss=6.9") < said.index("loss=5.8") < said.index("job gpt2 succeeded")


def test_follow_returns_the_code_of_the_first_failing_rank(here: Here) -> None:
    first, second = launched(here)
    start(here.api, first, second)
    following = here.following()
    until(lambda: "step 1" in here.capsys.readouterr().out)
    set_status(here.api, second, ended(7, json.dumps({"rank": 3, "code": 7, "time": time.time()})))
    here.api.close_log(second)
    condition(here.api, "gpt2", "Failed", "BackoffLimitExceeded", "too many")
    here.api.remove("pods", first)
    assert following.end() == 7
    assert "rank 3 on gpt2-1 failed first (the script ended itself with exit code 7)" in here.output()


def test_log_resumes_after_a_connection_loss(here: Here) -> None:
    first, second = launched(here)
    start(here.api, first, second)
    here.api.fail("GET", f"{first}/log.*follow=true", after=3, times=1)
    following = here.following()
    until(lambda: any("follow=true" in request for request in here.api.requests))
    for step in range(8):
        here.api.write(first, f"[rank0]:line {step}")
    said = here.prints("gpt2-0: cannot reach the cluster", "line 7\n")
    here.api.write(first, "[rank0]:line 8")
    finish(here.api, 0, first, second)
    assert following.end() == 0
    said += here.output()
    assert [said.count(f"line {step}\n") for step in range(9)] == [1] * 9


@pytest.mark.parametrize("status", [0, 410])
def test_expired_or_broken_watch_is_reopened(here: Here, status: int) -> None:
    first, second = launched(here)
    here.api.fail("GET", "watch=", status=-410 if status else 0, after=2, times=2)
    following = here.following()
    until(lambda: any("watch=" in request for request in here.api.requests))
    start(here.api, first, second)
    until(lambda: sum("watch=" in request for request in here.api.requests) >= 2)
    finish(here.api, 0, first, second)
    assert following.end() == 0


def test_follow_survives_an_outage_of_the_cluster(here: Here) -> None:
    first, second = launched(here)
    start(here.api, first, second)
    following = here.following()
    until(lambda: any("follow=true" in request for request in here.api.requests))
    here.api.fail("GET", "/jobs/gpt2", times=2)
    here.api.fail("GET", "watch=", 503, "starting", times=2)
    here.api.write(first, "[rank0]:meanwhile")
    set_status(here.api, first, running(), nodeName="worker-7")
    here.prints("meanwhile")
    finish(here.api, 0, first, second)
    assert following.end() == 0

"""`fab why` of a job in a cluster: what its pods' logs and the cluster's own reasons tell."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.kube.api import stamp
from tests.kube.in_process import Here
from tests.kube.pods import condition, ended, pods_of, running, set_status
from tests.why.test_tracebacks import PLAIN
from torchfab.commands.why import show_why


def failed(here: Here, status: Any) -> list[str]:
    """Launch a job whose second pod ends so, and whose first runs; return their names."""
    here.launch()
    first, second = pods_of(here.api, "gpt2")
    set_status(here.api, first, running(), nodeName="worker-0")
    set_status(here.api, second, status, nodeName="worker-1")
    for line in PLAIN.splitlines():
        here.api.write(second, f"[rank3]:{line}")
    return [first, second]


def why(here: Here) -> dict[str, Any]:
    """Return what `fab why --json` says."""
    record = here.find()
    here.output()
    assert show_why(record, as_json=True) == 0
    found: dict[str, Any] = json.loads(here.output())
    return found


def test_traceback_comes_from_the_log_of_the_rank_that_the_pod_names(here: Here) -> None:
    failed(here, ended(1, json.dumps({"rank": 3, "code": 1, "time": time.time()})))
    found = why(here)
    assert (found["cause"]["kind"], found["cause"]["words"]) == ("script", "the script raised ValueError: bad batch 17")
    assert (found["first"]["host"], found["first"]["rank"]) == ("gpt2-1", 3)
    assert ", in main" in found["first"]["traceback"]


EVICTED = {"reason": "Evicted", "message": "The node was low on memory."}
DRAINED = {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]}
GONE = {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}]}


@pytest.mark.parametrize(
    ("status", "kind", "name", "words"),
    [
        (
            ended(137, reason="OOMKilled"),
            "memory",
            "host-memory",
            "OOMKilled: it needed more memory than its machine has",
        ),
        (ended(137, reason="Error") | EVICTED, "killed", "evicted", "evicted: The node was low on memory"),
        (ended(143, reason="Error") | DRAINED, "killed", "evicted", "most likely because its machine is drained"),
        (ended(143, reason="Error") | GONE, "node", "node-failed", "because of its machine's state"),
    ],
)
def test_action_of_the_cluster_is_the_cause(here: Here, status: Any, kind: str, name: str, words: str) -> None:
    failed(here, status)
    found = why(here)
    assert (found["cause"]["kind"], found["cause"]["name"]) == (kind, name), found
    assert words in found["cause"]["words"]
    assert found["first"]["host"] == "gpt2-1"
    assert found["bad_nodes"] == (["gpt2-1"] if kind == "node" else [])


def test_eviction_without_container_times_precedes_its_effects(here: Here) -> None:
    when = time.time() - 40
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
    state = {"exitCode": 137, "reason": "ContainerStatusUnknown", "startedAt": None, "finishedAt": None}
    evicted = {"phase": "Failed", "conditions": [{**condition, "lastTransitionTime": stamp(when)}], **EVICTED}
    first, _ = failed(here, {**evicted, "containerStatuses": [{"name": "trainer", "state": {"terminated": state}}]})
    set_status(here.api, first, ended(1, json.dumps({"rank": 0, "code": 1, "time": when + 10})), nodeName="worker-0")
    for line in PLAIN.replace("ValueError: bad batch 17", "RuntimeError: Connection closed by peer").splitlines():
        here.api.write(first, f"[rank0]:{line}")
    found = why(here)
    assert (found["cause"]["name"], found["first"]["host"]) == ("evicted", "gpt2-1"), found


LOST = PLAIN.replace(
    "ValueError: bad batch 17",
    "RuntimeError: [/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:2",
)
REMOVED = {
    "Preempted": ("killed", "preempted", "preempted by a pod of higher priority"),
    "TaintManagerEviction": ("node", "node-failed", "evicted because of its machine's state"),
}


@pytest.mark.parametrize("reason", [*REMOVED, "Killing", ""])
def test_event_explains_a_pod_that_the_cluster_removed(here: Here, reason: str) -> None:
    """The other pod only lost its connection to it; without such an event that is all that is known."""
    here.launch()
    first, second = pods_of(here.api, "gpt2")
    told = json.dumps({"rank": 0, "code": 1, "time": time.time()})
    set_status(here.api, first, ended(1, told), nodeName="worker-0")
    for line in LOST.splitlines():
        here.api.write(first, f"[rank0]:{line}")
    here.api.remove("pods", second)
    condition(here.api, "gpt2", "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
    if reason:
        here.api.event(second, reason, "by default/big-0 on node worker-1")
        here.api.event(f"other-{second}", "Preempted", "another job")
    found = why(here)
    kind, name, words = REMOVED.get(reason, ("network", "connection-lost", "Connection closed by peer"))
    assert (found["cause"]["kind"], found["cause"]["name"]) == (kind, name), found
    assert words in found["cause"]["words"]
    assert found["first"]["host"] == ("gpt2-1" if reason in REMOVED else "gpt2-0")
    assert found["bad_nodes"] == (["gpt2-1"] if kind == "node" else [])


def test_deadline_of_the_cluster_is_the_cause(here: Here) -> None:
    here.launch()
    for pod in pods_of(here.api, "gpt2"):
        here.api.remove("pods", pod)
    condition(here.api, "gpt2", "Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
    found = why(here)
    assert (found["cause"]["kind"], found["cause"]["name"]) == ("killed", "time-limit"), found
    assert "longer than specified deadline" in found["cause"]["words"]


def test_rank_that_left_with_0_is_known_by_the_termination_message(here: Here) -> None:
    now = time.time()
    ends = [[0, 1, now], [1, 0, now - 4]]
    first, second = failed(here, ended(1, json.dumps({"rank": 2, "code": 1, "time": now, "ends": ends})))
    here.api.logs[second].lines.clear()
    for line in LOST.splitlines():
        here.api.write(second, f"[rank2]:{line}")
    set_status(here.api, first, ended(143), nodeName="worker-0")
    found = why(here)
    assert (found["cause"]["name"], found["first"]["rank"], found["first"]["code"]) == ("left-early", 3, 0), found


def test_why_reports_succeeded_and_stopped_jobs(here: Here) -> None:
    here.launch()
    for pod in pods_of(here.api, "gpt2"):
        set_status(here.api, pod, ended(0), nodeName="worker")
    condition(here.api, "gpt2", "Complete")
    assert why(here)["cause"]["kind"] == "succeeded"
    assert here.stop()[0] == 0
    assert why(here)["cause"]["kind"] == "succeeded"


def test_traceback_remains_after_the_pods_are_deleted(here: Here) -> None:
    for pod in failed(here, ended(1, json.dumps({"rank": 3, "code": 1, "time": time.time()}))):
        here.api.close_log(pod)
    assert here.stop()[0] == 0
    found = why(here)
    assert found["cause"]["words"] == "the script raised ValueError: bad batch 17", found


def test_why_names_a_cluster_that_does_not_answer(here: Here) -> None:
    failed(here, ended(1))
    here.api.fail("GET", "/jobs/gpt2", times=9)
    here.output()
    assert show_why(here.find(), as_json=False) == 1
    assert "unreachable:\n  the scheduler: cannot reach the cluster" in here.output()


STEPS = 500  # more lines than the last ones that are read of a rank


@pytest.mark.parametrize("is_stopped", [False, True])
def test_early_traceback_of_a_long_log_is_found(here: Here, is_stopped: bool) -> None:
    when = time.time() - 9000
    pods = failed(here, ended(1, json.dumps({"rank": 3, "code": 1, "time": when})))
    log = here.api.logs[pods[1]].lines
    log.clear()
    texts = [f"[rank2]:{line}" for line in LOST.splitlines()] + [f"[rank3]:{line}" for line in PLAIN.splitlines()]
    for rank in (2, 3):
        texts += [f"[rank{rank}]:frame #{number}: c10::f() + 0x1 (0x2 in libc10.so)" for number in range(STEPS)]
    for number, text in enumerate(texts):
        here.api.write(pods[1], text, when + number)
    if is_stopped:
        for pod in pods:
            here.api.close_log(pod)
        assert here.stop()[0] == 0
    found = why(here)
    assert found["cause"]["words"] == "the script raised ValueError: bad batch 17", found
    assert found["first"]["rank"] == 3

"""The status of a job on Kubernetes, from its pods."""

from __future__ import annotations

import time

import pytest

from tests.kube.in_process import Here
from tests.kube.pods import condition, ended, running, set_status, unschedulable, waiting
from tests.runtimes.kubernetes.jobs import launched, start
from torchfab.monitoring.job_status import ask_status


def test_job_is_pending_until_its_pods_run(here: Here) -> None:
    here.launch()
    assert "gpt2-[0-1]: its pod is not created yet" in here.status()
    here.api.event("gpt2", "FailedCreate", 'pods "gpt2-0-x" is forbidden: exceeded quota: gpus')
    assert 'its pod cannot be created: pods "gpt2-0-x" is forbidden: exceeded quota: gpus' in here.status()


def test_queued_job_names_its_queue(here: Here) -> None:
    here.launch(queue="research")
    assert "waits in the queue research (Kueue has not admitted it)" in here.status()


def test_reason_why_pods_do_not_run_is_described(here: Here) -> None:
    first, second = launched(here)
    missing = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available."
    set_status(here.api, first, unschedulable(missing))
    set_status(here.api, second, waiting("ImagePullBackOff", 'Back-off pulling image "x"'), nodeName="worker-1")
    here.api.event(second, "Failed", "manifest for x not found")
    said = here.status()
    assert "gpt2-0  pending (cannot be scheduled: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu)" in said
    assert "the image registry.example/train:1 cannot be pulled" in said
    assert "manifest for x not found" in said
    assert "job gpt2: pending" in said


def test_running_job_shows_ranks_machines_and_last_lines(here: Here) -> None:
    start(here.api, *launched(here))
    found = ask_status(here.find())
    assert found.state == "running"
    assert [[rank.rank for rank in node.ranks] for node in found.nodes] == [[0, 1], [2, 3]]
    assert "gpt2-1  running (on worker-1)" in (said := here.status())
    assert "ago: step 1" in said


def test_job_succeeds_when_all_its_pods_succeed(here: Here) -> None:
    for pod in launched(here):
        set_status(here.api, pod, ended(0))
    found = ask_status(here.find())
    assert (found.state, found.exit_code, found.has_ended) == ("succeeded", 0, True)


def test_exit_code_is_that_of_the_first_failing_rank(here: Here) -> None:
    first, second = launched(here)
    now = time.time()
    told = '{{"rank": {}, "code": {}, "time": {}}}'
    set_status(here.api, first, ended(1, told.format(0, 1, now + 0.4)))
    set_status(here.api, second, ended(7, told.format(3, 7, now + 0.1)))
    found = ask_status(here.find())
    assert (found.exit_code, str(found.first_failure)) == (7, "rank 3 on gpt2-1 failed first (exit code 7)")


def test_exit_code_falls_back_to_the_report_of_torchrun(here: Here) -> None:
    report = "Root Cause (first observed failure):\n[0]:\n  rank      : 3 (local_rank: 1)\n  exitcode  : 9 (pid: 4)\n"
    first, second = launched(here)
    set_status(here.api, first, running())
    set_status(here.api, second, ended(1, report))
    found = ask_status(here.find())
    assert (found.exit_code, found.first_failure and found.first_failure.rank) == (9, 3)


@pytest.mark.parametrize(
    ("status_of_pod", "words", "code"),
    [
        (ended(137, reason="OOMKilled"), "OOMKilled: it needed more memory than its limit of 64Gi", 137),
        (ended(137, reason="Error") | {"reason": "Evicted", "message": "The node was low on memory."},
         "evicted: The node was low on memory", 137),
        ({"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True",
          "reason": "PreemptionByScheduler", "message": "by pod b"}]},
         "preempted by a pod of higher priority: by pod b", 1),
        ({"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no device"},
         "UnexpectedAdmissionError: no device", 1),
        (ended(1, "Traceback\nModuleNotFoundError: No module named 'torch'\n"),
         "ModuleNotFoundError: No module named 'torch'", 1),
        (ended(128, "exec: python: not found", "StartError"), "the container cannot start: exec: python", 128),
    ],
    ids=["oom", "evicted", "preempted", "admission", "no torch", "no python"],
)  # fmt: skip
def test_causes_of_a_pod_end_are_distinguished(
    here: Here, status_of_pod: dict[str, object], words: str, code: int
) -> None:
    first, second = launched(here, memory="64Gi")
    set_status(here.api, first, running())
    set_status(here.api, second, status_of_pod)
    found = ask_status(here.find())
    assert words in str(found.first_failure)
    assert found.exit_code == code
    assert words in here.status()


def test_reason_of_the_job_is_shown_if_no_pod_failed(here: Here) -> None:
    launched(here)
    condition(here.api, "gpt2", "Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
    found = ask_status(here.find())
    assert (found.state, found.exit_code, found.has_ended) == ("failed", 1, True)
    assert "the cluster ended it: DeadlineExceeded" in here.status()


def test_failed_pod_does_not_end_a_job_with_restarts_left(here: Here) -> None:
    first, second = launched(here, max_restarts="1")
    set_status(here.api, first, running())
    set_status(here.api, second, ended(7, '{"rank": 3, "code": 7, "time": 1}'))
    assert "its pod failed (rank 3: exit code 7); another one will come" in here.status()
    assert not ask_status(here.find()).has_ended


def test_deleted_job_is_lost(here: Here) -> None:
    launched(here)
    here.api.remove("jobs", "gpt2")
    found = ask_status(here.find())
    assert (found.state, found.has_ended) == ("lost", True)
    assert "somebody deleted it" in here.status()


def test_later_job_of_the_same_name_is_ignored(here: Here) -> None:
    here.launch()
    here.api.remove("jobs", "gpt2")
    here.api.put("jobs", {"metadata": {"name": "gpt2", "labels": {"torchfab/id": "other"}}, "spec": {}, "status": {}})
    assert ask_status(here.find()).state == "lost"
    assert here.stop()[0] == 0
    assert here.api.names() == ["jobs/gpt2"]


def test_unreachable_cluster_does_not_make_a_job_lost(here: Here) -> None:
    launched(here)
    here.api.fail("GET", "/jobs/gpt2", times=9)
    found = ask_status(here.find())
    assert (found.state, found.has_ended, found.exit_code) == ("unreachable", False, None)
    assert "cannot reach the cluster" in here.status()


def test_later_change_of_context_does_not_affect_the_job(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    launched(here)
    monkeypatch.setenv("KUBECONFIG", "/elsewhere")
    assert ask_status(here.find()).state == "pending"

"""The Kubernetes runtime against an API server, through the official client as it comes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kube.api import API
from tests.kube.in_process import Here, here_on, until
from tests.kube.pods import condition, ended, pods_of, running, set_status, unschedulable, waiting
from torchfab import runtimes
from torchfab.commands.attach import attach_argv
from torchfab.commands.jobs import remove_record
from torchfab.commands.status import ask_status
from torchfab.core.errors import Interrupted
from torchfab.runtimes.kubernetes import client
from torchfab.runtimes.kubernetes.redaction import ANNOTATION

ALL = ["jobs/gpt2", "services/gpt2"]


@pytest.fixture
def api() -> Iterator[API]:
    with API() as made:
        yield made


@pytest.fixture
def here(
    api: API, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Here]:
    yield from here_on(api, tmp_path, monkeypatch, capsys)


def launched(here: Here, **flags: Any) -> list[str]:
    """Launch a job, and make its pods; return their names."""
    here.launch(**flags)
    return pods_of(here.api, "gpt2")


def start(api: API, *pods: str) -> None:
    for index, pod in enumerate(pods):
        api.write(pod, f"[rank{2 * index}]:step 1")
        set_status(api, pod, running(), nodeName=f"worker-{index}")


# ---- submitting


def test_launch_creates_service_and_job_and_prints_next_commands(here: Here) -> None:
    record = here.launch()
    assert here.api.names() == ALL
    assert "next: fab logs --follow gpt2 | fab status gpt2 | fab stop gpt2" in here.output()
    told = record.details
    assert (told["context"], told["namespace"]) == ("test", "default")
    assert told["kubeconfig"] == str(here.folder / "kubeconfig")
    assert [node.label for node in record.nodes] == ["gpt2-0", "gpt2-1"]


def test_namespace_comes_from_the_flag_or_the_context(here: Here) -> None:
    here.launch("one", namespace="ml")
    here.launch("two", context="ml")
    assert {(key[0], key[2]) for key in here.api.objects} == {("ml", "one"), ("ml", "two")}


def test_secret_values_are_only_in_the_secret(here: Here) -> None:
    here.environ["HF_TOKEN"] = "v3ry $(HOME) $$ s3cret\n"
    record = here.launch(env=("WANDB_API_KEY=an0ther",))
    secret = here.api.get("secrets", "gpt2-env")
    assert secret["stringData"] == {"HF_TOKEN": "v3ry $(HOME) $$ s3cret\n", "WANDB_API_KEY": "an0ther"}
    others = json.dumps([item for key, item in here.api.objects.items() if key[1] != "secrets"])
    written = "".join(path.read_text() for path in record.folder.rglob("*") if path.is_file())
    here.launch("other", dry_run=True)
    everything = others + written + here.output() + "".join(here.api.requests)
    assert "s3cret" not in everything
    assert "an0ther" not in everything
    assert "secretKeyRef" in others


def test_job_of_another_launch_is_not_touched(here: Here) -> None:
    here.api.put("jobs", {"metadata": {"name": "gpt2", "labels": {}}, "spec": {}, "status": {}})
    words = here.refused()
    assert words.startswith("there is a Job gpt2 in namespace default already, of another launch\n  fix: choose")
    assert here.api.names() == ["jobs/gpt2"]
    assert list((here.folder / "records").iterdir()) == []


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (403, 'jobs.batch is forbidden: User "bob" cannot create resource "jobs"', 'User "bob" cannot create'),
        (401, "Unauthorized", "the cluster does not accept your credentials"),
        (422, 'Job "gpt2" is invalid: spec.x', "the cluster refuses (422): Job"),
        (503, "etcd leader changed", "the cluster is busy or in trouble (503): etcd leader changed"),
        (0, "", "cannot reach the cluster at http://127.0.0.1:"),
        (-1, "", "cannot reach the cluster at http://127.0.0.1:"),
    ],
)
def test_partially_created_job_is_rolled_back(here: Here, status: int, message: str, expected: str) -> None:
    here.environ["HF_TOKEN"] = "x"
    here.api.fail("POST", "/jobs$", status, message)
    assert expected in here.refused()
    assert here.api.names() == []
    assert list((here.folder / "records").iterdir()) == []
    assert here.launch()


def test_launch_is_over_after_submit_even_if_fab_follows(here: Here) -> None:
    here.launch()
    assert here.ctx.records.launch_holder("gpt2") is None


def test_ctrl_c_while_creating_rolls_back(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(plural: str, item: object) -> None:
        if plural == "jobs":
            pods_of(here.api, "gpt2")
            raise KeyboardInterrupt

    real = client.Cluster.create

    def create(self: client.Cluster, item: dict[str, object]) -> dict[str, object]:
        made = real(self, item)
        interrupt(str(item["kind"]).lower() + "s", item)
        return made

    monkeypatch.setattr(client.Cluster, "create", create)
    with pytest.raises(Interrupted, match="interrupted; nothing was left"):
        here.launch()
    assert here.api.names() == []
    assert list((here.folder / "records").iterdir()) == []


def test_failed_rollback_is_reported_and_stop_finds_the_rest(here: Here) -> None:
    here.api.fail("POST", "/jobs$", 503, "trouble")
    here.api.fail("DELETE", "/services/gpt2", 503, "trouble")
    words = here.refused()
    assert "left behind: what there is of Job gpt2" in words
    assert "fix: when the cluster answers again: fab stop gpt2" in words
    code, said = here.stop()
    assert (code, here.api.names()) == (0, []), said


# ---- bad input


def test_missing_kubeconfig_is_reported(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere/config")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert here.refused() == (
        "no Kubernetes cluster is set up: there is no /nowhere/config\n  fix: set KUBECONFIG to its kubeconfig"
    )
    assert list((here.folder / "records").iterdir()) == []


@pytest.mark.parametrize("text", ["", "]", "a: b", '{"contexts": 3}', "apiVersion: v1\nkind: Config\n"])
def test_invalid_kubeconfig_is_reported_without_traceback(here: Here, text: str) -> None:
    (here.folder / "kubeconfig").write_text(text)
    assert str(here.folder / "kubeconfig") in here.refused()


def test_unknown_context_lists_the_known_ones(here: Here) -> None:
    assert here.refused(context="prod").endswith("has no context 'prod'\n  fix: its contexts: ml, test")


@pytest.mark.parametrize("current", [{}, {"current-context": ""}])
def test_context_flag_works_without_a_current_context(here: Here, current: dict[str, str]) -> None:
    config = {name: value for name, value in json.loads(here.api.kubeconfig()).items() if name != "current-context"}
    (here.folder / "kubeconfig").write_text(json.dumps({**config, **current}))
    assert here.refused().endswith("has no current context\n  fix: choose one with --context; its contexts: ml, test")
    assert here.launch(context="test")


def test_unreachable_cluster_is_named(here: Here, tmp_path: Path) -> None:
    config = json.loads(here.api.kubeconfig())
    config["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:9"
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    assert here.refused().startswith("cannot reach the cluster at http://127.0.0.1:9: ")


def test_server_that_is_not_kubernetes_is_reported(here: Here) -> None:
    here.api.fail("POST", "services", 404, "<html>Not here</html>")
    assert "the cluster refuses (404)" in here.refused()


def test_missing_namespace_is_named(here: Here) -> None:
    assert here.refused(namespace="nowhere").startswith("there is no namespace 'nowhere'")


def test_missing_claim_is_named_before_anything_is_created(here: Here) -> None:
    assert here.refused(pvc=("data:/data",)) == (
        "--pvc: there is no PersistentVolumeClaim data in namespace default\n  fix: kubectl get pvc"
    )
    assert not any(request.startswith("POST") for request in here.api.requests)
    here.api.put("persistentvolumeclaims", {"metadata": {"name": "data"}})
    assert here.launch(pvc=("data:/data",))


def test_unreadable_claim_is_still_used(here: Here) -> None:
    here.api.fail("GET", "persistentvolumeclaims", 403, "forbidden")
    assert here.launch(pvc=("data:/data",))


def test_jobset_needs_the_jobset_controller(here: Here) -> None:
    assert here.refused(jobset=True).startswith("this cluster has no JobSets\n  fix: leave --jobset out")
    here.api.has_jobsets = True
    here.launch(jobset=True)
    assert here.api.names() == ["jobsets/gpt2"]
    code, said = here.stop()
    assert (code, here.api.names()) == (0, []), said
    assert "JobSet is gone" in said


# ---- status


def test_job_is_pending_until_its_pods_run(here: Here) -> None:
    here.launch()
    assert "gpt2-[0-1]: its pod is not made yet" in here.status()
    here.api.event("gpt2", "FailedCreate", 'pods "gpt2-0-x" is forbidden: exceeded quota: gpus')
    assert 'its pod cannot be made: pods "gpt2-0-x" is forbidden: exceeded quota: gpus' in here.status()


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
        (ended(137, reason="OOMKilled"), "OOMKilled: it wanted more memory than its limit of 64Gi", 137),
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


# ---- logs


def write_logs(api: API, *pods: str) -> None:
    """Write two lines of each rank, and one of torchrun, into the logs of two pods of two ranks."""
    start(api, *pods)
    for index, pod in enumerate(pods):
        for step, rank in ((2, 2 * index), (1, 2 * index + 1), (2, 2 * index + 1)):
            api.write(pod, f"[rank{rank}]:step {step}")
        api.write(pod, f"W1120 torchrun {index}")


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


def finish(api: API, code: int, *pods: str) -> None:
    for pod in pods:
        set_status(api, pod, ended(code))
        api.close_log(pod)


def test_follow_shows_a_job_from_its_queue_to_its_end(here: Here) -> None:
    here.launch()
    following = here.following()
    first, second = pods_of(here.api, "gpt2")
    set_status(here.api, first, unschedulable("0/1 nodes are available: 1 Insufficient cpu."))
    time.sleep(1.5)
    start(here.api, first, second)
    here.api.write(first, "[rank0]:loss=6.9")
    time.sleep(1.5)
    here.api.write(first, "[rank0]:loss=5.8")
    finish(here.api, 0, first, second)
    assert following.end() == 0
    said = here.output()
    assert "cannot be scheduled: 0/1 nodes are available: 1 Insufficient cpu" in said
    assert "runs on gpt2-[0-1]" in said
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
    assert "rank 3 on gpt2-1 failed first (exit code 7)" in here.output()


def test_log_resumes_after_a_connection_loss(here: Here) -> None:
    first, second = launched(here)
    start(here.api, first, second)
    here.api.fail("GET", f"{first}/log.*follow=true", after=3, times=1)
    following = here.following()
    time.sleep(1.0)
    for step in range(8):
        here.api.write(first, f"[rank0]:line {step}")
        time.sleep(0.05)
    time.sleep(2.5)
    here.api.write(first, "[rank0]:line 8")
    finish(here.api, 0, first, second)
    assert following.end() == 0
    said = here.output()
    assert [said.count(f"line {step}\n") for step in range(9)] == [1] * 9
    assert "gpt2-0: cannot reach the cluster" in said


@pytest.mark.parametrize("status", [0, 410])
def test_expired_or_broken_watch_is_reopened(here: Here, status: int) -> None:
    first, second = launched(here)
    here.api.fail("GET", "watch=", status=-410 if status else 0, after=2, times=2)
    following = here.following()
    time.sleep(0.5)
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
    time.sleep(2)
    finish(here.api, 0, first, second)
    assert following.end() == 0
    assert "meanwhile" in here.output()


# ---- stop


def test_stop_deletes_all_objects_and_verifies_it(here: Here) -> None:
    here.environ["HF_TOKEN"] = "x"
    pods = launched(here)
    write_logs(here.api, *pods)
    code, said = here.stop()
    assert code == 0
    assert here.api.names() == []
    assert "gpt2-0: Job, Service and Secret are gone, its pod is gone, within " in said.replace("gpt2-[0-1]", "gpt2-0")
    assert "job gpt2: stopped, no process of it is left on 2 nodes" in said
    assert ask_status(here.find()).exit_code == 143


SECRET = "hf_Ab3dEf6hIj"


def test_printed_secret_is_redacted_even_after_the_pod_is_deleted(here: Here) -> None:
    here.environ["HF_TOKEN"] = SECRET
    pods = launched(here)
    start(here.api, *pods)
    here.api.write(pods[0], f"[rank1]:my token is {SECRET}, and in a word: x-{SECRET}-x")
    shown = ["gpt2-0 [1] my token is <HF_TOKEN>, and in a word: x-<HF_TOKEN>-x"]
    assert here.logs(rank="1") == shown
    assert "<HF_TOKEN>" in here.status()
    here.stop()
    assert here.logs(rank="1") == shown
    written = "".join(path.read_text() for path in here.find().folder.rglob("*") if path.is_file())
    assert "<HF_TOKEN>" in written
    assert SECRET not in written
    assert ANNOTATION not in written, "the record holds the key: digests beside it could be tried"


def test_status_and_logs_work_after_stop_without_the_cluster(here: Here) -> None:
    write_logs(here.api, *launched(here))
    here.stop()
    before = len(here.api.requests)
    assert here.logs()[:1] == ["gpt2-[0-1] [0-3] step 1"]
    assert "job gpt2: stopped" in here.status()
    assert len(here.api.requests) == before


def test_second_stop_is_harmless(here: Here) -> None:
    write_logs(here.api, *launched(here))
    here.stop()
    code, said = here.stop()
    assert code == 0, said
    assert "it had no pod" in said
    assert "job gpt2: stopped" in said


def test_stop_names_a_pod_on_an_unreachable_machine(here: Here) -> None:
    here.answer_timeout_s = 1.0
    here.launch()
    pods = pods_of(here.api, "gpt2")
    start(here.api, *pods)
    here.api.on_delete = lambda plural, item, grace_s: item["metadata"]["name"] != pods[1]
    code, said = here.stop(grace_s=0)
    assert code == 1
    assert f"gpt2-1: still there: Pod {pods[1]} on worker-1, which may not answer" in said
    assert "is being stopped" in here.status()
    here.api.on_delete = lambda plural, item, grace_s: True
    assert here.stop()[0] == 0
    assert ask_status(here.find()).state == "stopped"


def test_pods_get_a_grace_period_of_at_least_one_second(here: Here) -> None:
    graces: list[int] = []

    def note(plural: str, item: object, grace_s: int) -> bool:
        if plural == "pods":
            graces.append(grace_s)
        return True

    here.answer_timeout_s = 2.0
    pods = launched(here)
    here.api.on_delete = lambda plural, item, grace_s: plural != "jobs" and note(plural, item, grace_s)
    here.stop(grace_s=0)
    assert graces == [1] * len(pods)


def test_stop_reports_an_unreachable_cluster(here: Here) -> None:
    launched(here)
    here.api.fail("GET", "/jobs/gpt2", times=9)
    code, said = here.stop()
    assert code == 1
    assert "2 of 2 nodes could not be asked to stop" in said
    assert "when they are back: fab stop gpt2" in said


def test_follow_ends_when_the_job_is_stopped_elsewhere(here: Here) -> None:
    start(here.api, *launched(here))
    following = here.following()
    until(lambda: any("follow=true" in request for request in here.api.requests))
    assert runtimes.load("kubernetes").stop(here.find(), 1.0)
    for pod in list(here.api.logs):
        here.api.close_log(pod)
    assert following.end() == 143


def test_stop_of_some_nodes_leaves_the_others_running(here: Here) -> None:
    first, second = launched(here)
    start(here.api, first, second)
    record = here.find()
    reports = runtimes.load("kubernetes").stop(record, 1.0, record.nodes[1:])
    assert [report.summary[:15] for report in reports] == ["its pod is gone"]
    assert here.api.names() == sorted([f"pods/{first}", *ALL])


# ---- what else there is


def test_remove_deletes_the_record_and_the_objects(here: Here) -> None:
    for pod in launched(here):
        set_status(here.api, pod, ended(0))
    remove_record("gpt2", here.ctx)
    assert here.api.names() == []
    assert list((here.folder / "records").iterdir()) == []


def test_attach_is_kubectl_exec(here: Here) -> None:
    pods = launched(here)
    start(here.api, *pods)
    argv = attach_argv(here.find(), "1", "")
    config = ("--kubeconfig", str(here.folder / "kubeconfig"), "--context", "test", "--namespace", "default")
    assert argv[:-4] == ("kubectl", *config, "exec", "-it", pods[1], "--container", "trainer")
    assert attach_argv(here.find(), "", "2")[9] == pods[1]


def test_two_jobs_do_not_affect_each_other(here: Here) -> None:
    here.launch("gpt2")
    here.launch("gpt2-0")
    pods_of(here.api, "gpt2")
    others = pods_of(here.api, "gpt2-0")
    assert here.stop("gpt2")[0] == 0
    assert [name for name in here.api.names() if name.startswith("pods/")] == [f"pods/{pod}" for pod in others]
    assert "jobs/gpt2-0" in here.api.names()


def test_logs_are_read_by_many_threads(here: Here) -> None:
    here.launch(nodes="24", nproc_per_node="1")
    pods = pods_of(here.api, "gpt2")
    for rank, pod in enumerate(pods):
        here.api.write(pod, f"[rank{rank}]:hello")
        set_status(here.api, pod, running())
    following = here.following()
    until(lambda: sum("follow=true" in request for request in here.api.requests) == 24)
    finish(here.api, 0, *pods)
    assert following.end() == 0
    assert "gpt2-[0-23] [0-23] hello" in here.output()
    assert threading.active_count() < 80

"""The Kubernetes runtime against an API server, through the official client as it comes."""

from __future__ import annotations

import json
import threading

import pytest

from tests.kube.in_process import Here, until
from tests.kube.pods import ended, pods_of, running, set_status
from tests.runtimes.kubernetes.jobs import ALL, finish, launched, start, write_logs
from torchfab import runtimes
from torchfab.commands.attach import attach_argv
from torchfab.commands.jobs import remove_record
from torchfab.core.errors import Interrupted, UsageError
from torchfab.monitoring.job_status import ask_status
from torchfab.runtimes.kubernetes import client
from torchfab.runtimes.kubernetes.redaction import ANNOTATION

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
        (503, "etcd leader changed", "the cluster is overloaded or faulty (503): etcd leader changed"),
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
    assert "2 of 2 nodes could not be reached to stop the job" in said
    assert "when they are reachable again: fab stop gpt2" in said


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


def test_what_goes_over_ssh_names_the_lines_of_kubectl(here: Here) -> None:
    pods = launched(here)
    start(here.api, *pods)
    kubectl = f"kubectl --kubeconfig {here.folder}/kubeconfig --context test --namespace default"
    with pytest.raises(UsageError) as caught:
        runtimes.load("kubernetes").machines(here.find())
    assert caught.value.message == "job gpt2 runs in pods, which ssh does not reach"
    assert f"files: {kubectl} cp --container trainer {pods[0]}:PATH ./NAME; " in caught.value.fix
    assert f"a port: {kubectl} port-forward {pods[0]} 6006:6006; " in caught.value.fix


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

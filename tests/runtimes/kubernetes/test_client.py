"""The Kubernetes client: kubeconfigs, contexts, and clusters that do not answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kube.in_process import Here


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
    assert here.refused(jobset=True).startswith("this cluster has no JobSets\n  fix: omit --jobset")
    here.api.has_jobsets = True
    here.launch(jobset=True)
    assert here.api.names() == ["jobsets/gpt2"]
    code, said = here.stop()
    assert (code, here.api.names()) == (0, []), said
    assert "JobSet is gone" in said

"""The life of a job against kmock: an API server that others wrote, so that ours does not repeat our own errors."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kmock import KubernetesEmulator, ResourceInfo, Server

from tests.kube.api import API
from tests.kube.in_process import Here
from torchfab.monitoring.job_status import ask_status

RESOURCES = {
    "v1/pods": "Pod", "v1/services": "Service", "v1/secrets": "Secret", "v1/events": "Event", "batch/v1/jobs": "Job",
}  # fmt: skip


class Emulator:
    """kmock in a thread with an event loop of its own."""

    def __init__(self) -> None:
        self.url = ""
        self.ready, self.thread = threading.Event(), threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self.ready.wait(60)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self.loop, self.over = asyncio.get_running_loop(), asyncio.Event()
        async with KubernetesEmulator() as kube, Server(kube) as server:
            for name, kind in RESOURCES.items():
                kube.resources[name] = ResourceInfo(kind=kind, namespaced=True)
            self.kube, self.url = kube, str(server.url).rstrip("/")
            self.ready.set()
            await self.over.wait()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join(60)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    emulator = Emulator()
    config = json.loads(API.kubeconfig(SimpleNamespace(url=emulator.url)))  # type: ignore[arg-type]
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    api: Any = emulator
    yield Here(api, tmp_path, capsys)
    emulator.close()


def test_job_is_created_queried_and_stopped(here: Here) -> None:
    here.environ["HF_TOKEN"] = "x"
    here.launch()
    assert ask_status(here.find()).state == "pending"
    code, said = here.stop()
    assert code == 0, said
    assert "Job, Service and Secret are gone" in said
    here.launch("again")
    assert here.stop("again")[0] == 0


def test_name_in_use_is_reported(here: Here) -> None:
    here.launch()
    (here.folder / "records").rename(here.folder / "another machine's")
    assert "there is a Service gpt2 in namespace default already, of another launch" in here.refused()
    (here.folder / "records").rmdir()
    (here.folder / "another machine's").rename(here.folder / "records")
    assert ask_status(here.find()).state == "pending"

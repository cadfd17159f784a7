"""Launching and asking in this process, through the official client: a `fab` for each step would take a second each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kube.api import API
from torchfab.cli.flags import PodFlags
from torchfab.commands import logs, status, stop
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import TorchfabError
from torchfab.core.flag_values import parse
from torchfab.launchers import kubernetes
from torchfab.launching import job_lookup, submit
from torchfab.launching.context import CommandContext
from torchfab.monitoring.job_watcher import Printer
from torchfab.monitoring.log_request import log_request
from torchfab.records import Record
from torchfab.runtimes.kubernetes import log_stream, runtime

ROOT = Path(__file__).parents[2]


@dataclass
class Here:
    """A launch machine with records of its own, and a cluster.

    Attributes
    ----------
    environ : dict of str to str
        The terminal's environment.
    answer_timeout_s : float
        How long the cluster is waited for.
    """

    api: API
    folder: Path
    capsys: pytest.CaptureFixture[str]
    environ: dict[str, str] = field(default_factory=dict)
    answer_timeout_s: float = 5.0
    count: int = 0

    @property
    def ctx(self) -> CommandContext:
        config = yaml.safe_load((ROOT / "fabric.yaml").read_text())["torchfab"]
        config.update(records=str(self.folder / "records"))
        settings = ConnectionSettings(answer_timeout_s=self.answer_timeout_s)
        self.count += 1
        token, words = f"{self.count:08x}", ("train.py", "--lr", "3e-4")
        return CommandContext(
            config, ROOT, "/work", time.time(), token, self.environ, settings, words, mask_key="ab" * 32
        )

    def launch(self, name: str = "gpt2", env: tuple[str, ...] = (), dry_run: bool = False, **flags: Any) -> Record:
        """Launch two pods of two ranks, unless the flags say otherwise."""
        own = parse(kubernetes.Flags, {"image": "registry.example/train:1", "nodes": "2", **flags})
        record = submit.submit(kubernetes, PodFlags(name=name, env=env, dry_run=dry_run), own, self.ctx)
        assert dry_run or record is not None
        return record  # type: ignore[return-value]

    def refused(self, **flags: Any) -> str:
        """Launch, which must fail; return the error's text."""
        with pytest.raises(TorchfabError) as caught:
            self.launch(**flags)
        return str(caught.value)

    def find(self, name: str = "gpt2") -> Record:
        return job_lookup.find(name, self.ctx)

    def prints(self, *texts: str) -> str:
        """Wait until all of these texts are printed; return the output since the last call."""
        printed = ""

        def there() -> bool:
            nonlocal printed
            printed += self.output()
            return all(text in printed for text in texts)

        until(there)
        return printed

    def output(self) -> str:
        """Return the output since the last call, on stdout and stderr."""
        out, err = self.capsys.readouterr()
        return str(out + err)

    def status(self, name: str = "gpt2") -> str:
        """Return the output of `fab status`."""
        self.output()
        status.show_status(self.find(name), watch=False, as_json=False, stall_s=0.0)
        return self.output()

    def logs(self, name: str = "gpt2", rank: str = "", lines: str = "", grep: str = "") -> list[str]:
        """Return the output of `fab logs`."""
        self.output()
        request = log_request(rank, lines or "all", grep, follow=False)
        logs.show_logs(self.find(name), request, printer=Printer(), stall_s=0.0)
        return self.output().splitlines()

    def stop(self, name: str = "gpt2", grace_s: float = 1.0) -> tuple[int, str]:
        """Return the exit code and the output of `fab stop`."""
        self.output()
        return stop.stop(self.find(name), grace_s), self.output()

    def following(self, name: str = "gpt2") -> Following:
        """Start `fab wait` with logs, as `--follow` does."""
        return Following(lambda: logs.follow(self.find(name), failure_grace_s=5.0, stall_s=0.0))


class Following:
    """`--follow`, in a thread."""

    def __init__(self, call: Callable[[], int]) -> None:
        self.code: int | None = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self.thread.start()

    def _run(self, call: Callable[[], int]) -> None:
        try:
            self.code = call()
        except BaseException as error:
            self.error = error

    def end(self, within_s: float = 60.0) -> int:
        """Wait for its end; return the exit code."""
        self.thread.join(within_s)
        assert not self.thread.is_alive(), "still following"
        if self.error:
            raise self.error
        assert self.code is not None
        return self.code


def until(holds: Callable[[], object], within_s: float = 60.0) -> None:
    """Wait for a condition, or fail."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, holds
        time.sleep(0.02)


def here_on(
    api: API, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Here]:
    """Give a launch machine whose kubeconfig leads to `api`, which is asked again sooner than a real one."""
    monkeypatch.setattr(log_stream, "_MIN_REFRESH_S", 0.05)
    monkeypatch.setattr(log_stream, "_RETRY_S", 0.1)
    monkeypatch.setattr(runtime, "_POLL_S", 0.02)
    path = folder / "kubeconfig"
    path.write_text(api.kubeconfig())
    monkeypatch.setenv("KUBECONFIG", str(path))
    yield Here(api, folder, capsys)

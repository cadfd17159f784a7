"""A cluster that a job is launched on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kube.api import API
from tests.kube.in_process import Here, here_on


@pytest.fixture
def api() -> Iterator[API]:
    with API() as made:
        yield made


@pytest.fixture
def here(
    api: API, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Here]:
    yield from here_on(api, tmp_path, monkeypatch, capsys)

"""The logs of a Slurm job, read from the folder that its nodes share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torchfab.remote import job_files
from torchfab.remote.slurm import job as slurm
from torchfab.remote.slurm.logs import Stream

MOST_FRAMES = 500


class Job:
    """The folder of a job on two nodes; it runs until a test sets its end."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.state = root, "RUNNING"
        for rank in (0, 1):
            folder = root / f"node-{rank}" / slurm.AGENT
            folder.mkdir(parents=True)
            (folder / job_files.SPEC).write_text(json.dumps({"rank": rank}))
        monkeypatch.setattr(slurm, "status", lambda _: {"slurm": {"state": self.state}, "nodes": []})
        monkeypatch.setattr("torchfab.remote.slurm.logs._SHORT_QUERY_S", 0.0)

    def path(self, rank: int | None) -> Path:
        """Return the log of a rank, or of the batch script."""
        return self.root / slurm.LOG if rank is None else self.root / f"node-{rank}" / slurm.AGENT / job_files.OUTPUT

    def write(self, text: str, rank: int | None = 0) -> None:
        with open(self.path(rank), "a") as file:
            file.write(text)

    def read(self, before: Callable[[int], None] = lambda _: None, **request: Any) -> list[dict[str, Any]]:
        """Return all frames; `before` is called before each, with how many there were."""
        frames: list[dict[str, Any]] = []

        def send(frame: Any) -> None:
            before(len(frames))
            frames.append(json.loads(json.dumps(frame)))

        base = {"folder": str(self.root), "job_id": "a-1", "nodes": 2, "lines": None, "ranks": None, "grep": None}
        Stream({**base, "follow": True, **request}, send).run(lambda: len(frames) > MOST_FRAMES)
        return frames


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, monkeypatch)


def texts(frames: list[dict[str, Any]]) -> list[str]:
    return [text for frame in frames for _, _, text in frame.get("lines", ())]


def test_a_stream_from_offsets_sends_new_lines_once(job: Job) -> None:
    for rank in (0, 1, None):
        job.write("old\nnew\n", rank)
    job.state = "COMPLETED"
    frames = job.read(offsets={str(job.path(rank)): 4 for rank in (0, 1, None)})
    assert texts(frames) == ["new"] * 3


def test_a_job_that_never_stops_writing_is_not_read_forever(job: Job) -> None:
    job.write("first\n")
    frames = job.read(lambda _: job.write("again\n"), follow=False)
    assert len(frames) < MOST_FRAMES


def test_a_match_after_many_other_lines_is_found_at_the_end(job: Job) -> None:
    job.write("first\n" + "noise\n" * 100_000 + "found\n")
    job.state = "COMPLETED"
    assert texts(job.read(offsets={str(job.path(0)): 6}, grep="found")) == ["found"]

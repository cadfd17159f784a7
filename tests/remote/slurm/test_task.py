"""A task of a Slurm job: its exit code, and the end of the others when it fails."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from torchfab.remote import job_files
from torchfab.remote.job.end_request import EndRequest
from torchfab.remote.job.rank_tracker import RankTracker
from torchfab.remote.slurm import job, task


def test_the_exit_code_is_that_of_the_rank_that_failed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [str(tmp_path / "node.py")])
    job_files.write_json(str(tmp_path / "slurm.json"), {"nodes": 2})
    assert task.exit_code(137) == 137
    for rank, (code, ended) in enumerate([(-9, 60.0), (7, 50.0)]):
        folder = job.node_folder(str(tmp_path), rank) + "/agent"
        job_files.make_private(folder)
        job_files.write_json(f"{folder}/ranks.json", [{"ended": ended, "code": code}, {"ended": None, "code": None}])
    assert task.exit_code(137) == 7


def node(tmp_path: Path, rank: int, restart: int = 0) -> Path:
    """Return the folder of a node's task, with its spec."""
    folder = Path(job.node_folder(str(tmp_path), rank), "agent")
    job_files.make_private(str(folder))
    job_files.write_json(str(folder / "spec.json"), {"restart": restart})
    return folder


def ends_others(tmp_path: Path, grace_s: float = 20, restart: int = 0) -> threading.Thread:
    """Let the task of node 0 fail in a job of two nodes."""
    job_files.write_json(str(node(tmp_path, 0, restart) / "exit.json"), {"code": 7, "left": []})
    spec = {"failed": str(tmp_path / f"failed-{restart}"), "grace_s": grace_s, "nodes": 2, "restart": restart}
    thread = threading.Thread(target=task._end_others, args=(str(tmp_path), spec), daemon=True)
    thread.start()
    return thread


def test_a_task_that_fails_tells_the_others_and_ends_after_them(tmp_path: Path) -> None:
    other = node(tmp_path, 1)
    request = EndRequest(str(other), {"grace_s": 5, "failed": str(tmp_path / "failed-0")}, RankTracker(str(other), 0))
    assert not request._is_requested_by_file()
    failed = ends_others(tmp_path)
    job_files.write_json(str(other / "exit.json"), {"code": 1, "cleaning": True})
    time.sleep(0.5)
    assert failed.is_alive()
    assert request._is_requested_by_file()
    job_files.write_json(str(other / "exit.json"), {"code": 1, "left": []})
    failed.join(5)
    assert not failed.is_alive()


def test_a_task_that_fails_waits_for_no_end_of_a_former_run(tmp_path: Path) -> None:
    other = node(tmp_path, 1, restart=0)
    job_files.write_json(str(other / "exit.json"), {"code": 1, "left": []})
    failed = ends_others(tmp_path, restart=1)
    time.sleep(0.5)
    assert failed.is_alive()
    job_files.write_json(str(node(tmp_path, 1, restart=1) / "exit.json"), {"code": 1, "left": []})
    failed.join(5)
    assert not failed.is_alive()


def test_a_task_that_fails_waits_for_its_grace_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "_AFTER_GRACE_S", 0.1)
    node(tmp_path, 1)
    failed = ends_others(tmp_path, grace_s=0.3)
    failed.join(5)
    assert not failed.is_alive()

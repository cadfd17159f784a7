"""The exit code of a task of a Slurm job."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchfab.remote import job_files
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

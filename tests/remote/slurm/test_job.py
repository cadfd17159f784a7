"""Calls of Slurm's commands and the parsing of their output, with stub programs in their place."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tests.remote.slurm.programs import SHOW, Stubs, scontrol
from torchfab.remote import job_files
from torchfab.remote.slurm import job


def test_scontrol_output_is_parsed_whatever_the_jobs_name(stubs: Stubs) -> None:
    scontrol(stubs, "PENDING", "Nodes required are DOWN", "(null)")
    assert job.query("17") == {
        "state": "PENDING",
        "why": "Nodes required are DOWN",
        "restarts": 2,
        "exit": "7:0",
        "limit": "00:10:00",
        "start": "2026-11-20T20:11:21",
        "hosts": [],
    }
    scontrol(stubs)
    assert job.query("17")["hosts"] == ["n1", "n2"]


def test_a_forgotten_job_is_queried_in_the_accounting_then_in_the_log(stubs: Stubs) -> None:
    stubs.put("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    stubs.put("sacct", "printf 'FAILED|1:0|n1|00:10:00\\nCANCELLED by 7|0:15|n1|00:10:00\\n'")
    limit = {"limit": "00:10:00"}
    assert job.query("17") == {"state": "CANCELLED", "why": "", "exit": "0:15", "hosts": ["n1"], **limit}
    stubs.put("sacct", '[ "$1" = -c ] && echo "TIMEOUT|0:0|n1|10" || { echo "storage is disabled" >&2; exit 1; }')
    assert (job.query("17")["state"], job.query("17")["limit"]) == ("TIMEOUT", "")
    stubs.put("sacct", "exit 1")
    assert job.query("17") == {"state": ""}


def test_a_controller_that_does_not_answer_is_an_error_not_an_end(stubs: Stubs) -> None:
    stubs.put("scontrol", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    found = job.query("17")
    assert found == {"error": "slurm_load_jobs error: Unable to contact slurm controller"}
    assert job.is_active(found)


def test_files_from_before_a_requeue_are_not_used(stubs: Stubs, tmp_path: Path) -> None:
    scontrol(stubs)  # Restarts=2
    wanted: dict[str, Any] = {"slurm_id": "17", "folder": str(tmp_path / "job"), "job_id": "gpt2-1", "nodes": 2}
    for rank, restart in ((0, 1), (1, 2)):
        folder = job.node_folder(wanted["folder"], rank) + "/agent"
        job_files.make_private(folder)
        job_files.write_json(f"{folder}/spec.json", {"name": "agent", "host": f"h{rank}", "restart": restart})
    first, second = job.status(wanted)["nodes"]
    assert first == {"rank": 0, "host": "n1", "status": None}
    assert (second["host"], second["status"]["processes"][0]["state"]) == ("h1", "starting")


def test_a_grace_period_longer_than_slurms_starts_with_a_signal(
    stubs: Stubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, gone = (SHOW.format(state=state, why="None", hosts="n1") for state in ("RUNNING", "CANCELLED"))
    for name, text in {"running": running, "gone": gone}.items():
        (tmp_path / name).write_text(text)
    stubs.put("scontrol", f"cd {tmp_path}; grep -qx 17 scancelled 2>/dev/null && cat gone || cat running")
    monkeypatch.setattr(job, "KILL_WAIT_S", 0)
    wanted = {"slurm_id": "17", "folder": str(tmp_path), "job_id": "gpt2-1", "nodes": 2, "grace_s": 0.5}
    assert job.stop(wanted)["left"] == []
    assert (tmp_path / "scancelled").read_text() == "--signal=TERM 17\n17\n"


def test_a_job_is_cancelled_even_on_a_full_disk(stubs: Stubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, _: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    scontrol(stubs, "COMPLETING")
    monkeypatch.setattr(job, "KILL_WAIT_S", -14.5)
    monkeypatch.setattr(job_files, "write_json", full)
    wanted = {"slurm_id": "17", "folder": str(tmp_path), "job_id": "gpt2-1", "nodes": 2, "grace_s": 0.0}
    assert job.stop(wanted)["left"] == ["Slurm job 17: COMPLETING"]
    assert (tmp_path / "scancelled").read_text().endswith("\n17\n")


def test_a_job_that_slurm_does_not_end_is_reported_as_left(
    stubs: Stubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol(stubs, "COMPLETING")
    monkeypatch.setattr(job, "KILL_WAIT_S", -14.5)
    wanted = {"slurm_id": "17", "folder": str(tmp_path), "job_id": "gpt2-1", "nodes": 2, "grace_s": 0.0}
    assert job.stop(wanted)["left"] == ["Slurm job 17: COMPLETING"]

"""sbatch on the login node, with a program in its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.remote.slurm.programs import Stubs, request, scontrol
from torchfab.remote.slurm import submit


def test_submit_writes_the_folder_and_passes_secrets_in_the_environment(
    stubs: Stubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_TIMELIMIT", "5")  # the file says --time: sbatch would let this win
    monkeypatch.setenv("SBATCH_ACCOUNT", "lab")
    stubs.put("sbatch", f'echo "$* $A_TOKEN $SBATCH_TIMELIMIT $SBATCH_ACCOUNT" > {tmp_path}/seen; echo "17;cluster"')
    wanted = request(tmp_path)
    assert submit.submit(wanted, "source") == {"slurm_id": "17"}
    folder = Path(wanted["folder"])
    assert (tmp_path / "seen").read_text() == f"--parsable --export=ALL {folder}/job.sbatch sesame  lab\n"
    assert sorted(path.name for path in folder.iterdir()) == ["job.sbatch", "node.py", "slurm.json"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert "sesame" not in "".join(path.read_text() for path in folder.iterdir())


@pytest.mark.parametrize(
    ("message", "fix"),
    [
        ("Batch job submission failed: Invalid account or account/partition combination specified", "sacctmgr"),
        ("Batch job submission failed: Invalid qos specification", "sacctmgr"),
        ("Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)", "sinfo"),
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", "scontrol ping"),
    ],
)
def test_an_error_of_sbatch_has_a_fix_and_leaves_nothing(stubs: Stubs, tmp_path: Path, message: str, fix: str) -> None:
    stubs.put("sbatch", f"echo 'sbatch: error: {message}' >&2; exit 1")
    wanted = request(tmp_path)
    (problem,) = submit.submit(wanted, "source")["problems"]
    assert problem["what"] == message
    assert fix in problem["fix"]
    assert not os.path.exists(wanted["folder"])


def test_all_missing_requirements_are_reported_at_once(stubs: Stubs, tmp_path: Path) -> None:
    stubs.put("sbatch", "echo 17")
    problems = submit.submit(request(tmp_path, script="no.py", python="/no/python"), "source")["problems"]
    assert [each["what"] for each in problems] == [
        f"the script {tmp_path}/no.py does not exist",
        "there is no /no/python",
    ]


def test_a_submission_without_commit_is_rolled_back(stubs: Stubs, tmp_path: Path) -> None:
    scontrol(stubs, "CANCELLED")
    stubs.put("sbatch", "echo 17")
    wanted = request(tmp_path)
    submit.rollback(wanted, submit.submit(wanted, "source")["slurm_id"])
    assert (tmp_path / "scancelled").read_text() == "17\n"
    assert not os.path.exists(wanted["folder"])

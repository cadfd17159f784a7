"""Calls of Slurm's commands and the parsing of their output, with stub programs in their place."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from torchfab.remote import files
from torchfab.remote.slurm import job, submit, task

SHOW = """\
JobId=17 JobName=x JobState=COMPLETED
   UserId=me(1000) GroupId=me(1000) MCS_label=N/A
   JobState={state} Reason={why} Dependency=(null)
   Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=7:0
   RunTime=00:00:01 TimeLimit=00:10:00 TimeMin=N/A
   StartTime=2026-11-20T20:11:21 EndTime=Unknown Deadline=N/A
   ReqNodeList=(null) ExcNodeList=(null)
   NodeList={hosts}
   Command=/x JobState=TIMEOUT
"""


class Stubs:
    """A PATH with stub programs in place of Slurm's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def put(self, program: str, body: str) -> None:
        path = self.folder / program
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o700)


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stubs:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    made = Stubs(tmp_path / "bin")
    made.put("scancel", f"echo $* >> {tmp_path}/scancelled")
    return made


def scontrol(stubs: Stubs, state: str = "RUNNING", why: str = "None", hosts: str = "n[1-2]") -> None:
    text = SHOW.format(state=state, why=why, hosts=hosts)
    stubs.put("scontrol", f'[ "$2" = hostnames ] && printf "n1\\nn2\\n" || cat <<"EOF"\n{text}EOF')


def request(tmp_path: Path, **more: Any) -> dict[str, Any]:
    (tmp_path / "train.py").touch()
    base = {"folder": str(tmp_path / ".torchfab" / "jobs" / "gpt2-1"), "text": "#!/bin/bash\n", "options": ["time"]}
    script = {"script": "train.py", "python": "sh", "workdir": str(tmp_path), "timeout_s": 10}
    return {**base, **script, "spec": {"name": "agent"}, "secrets": {"A_TOKEN": "sesame"}, **more}


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


def test_files_from_before_a_requeue_are_not_used(stubs: Stubs, tmp_path: Path) -> None:
    scontrol(stubs)  # Restarts=2
    wanted: dict[str, Any] = {"slurm_id": "17", "folder": str(tmp_path / "job"), "job_id": "gpt2-1", "nodes": 2}
    for rank, restart in ((0, 1), (1, 2)):
        folder = job.node_folder(wanted["folder"], rank) + "/agent"
        files.make_private(folder)
        files.write_json(f"{folder}/spec.json", {"name": "agent", "host": f"h{rank}", "restart": restart})
    first, second = job.status(wanted)["nodes"]
    assert first == {"rank": 0, "host": "n1", "status": None}
    assert (second["host"], second["status"]["processes"][0]["state"]) == ("h1", "starting")


def test_a_submission_without_commit_is_rolled_back(stubs: Stubs, tmp_path: Path) -> None:
    scontrol(stubs, "CANCELLED")
    stubs.put("sbatch", "echo 17")
    wanted = request(tmp_path)
    submit.rollback(wanted, submit.submit(wanted, "source")["slurm_id"])
    assert (tmp_path / "scancelled").read_text() == "17\n"
    assert not os.path.exists(wanted["folder"])


def test_the_exit_code_is_that_of_the_rank_that_failed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [str(tmp_path / "node.py")])
    files.write_json(str(tmp_path / "slurm.json"), {"nodes": 2})
    assert task.exit_code(137) == 137
    for rank, (code, ended) in enumerate([(-9, 60.0), (7, 50.0)]):
        folder = job.node_folder(str(tmp_path), rank) + "/agent"
        files.make_private(folder)
        files.write_json(f"{folder}/ranks.json", [{"ended": ended, "code": code}, {"ended": None, "code": None}])
    assert task.exit_code(137) == 7


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
    monkeypatch.setattr(files, "write_json", full)
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

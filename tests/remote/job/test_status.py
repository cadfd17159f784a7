"""Status and stop, on real processes."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.remote.job.test_supervisor import ESCAPING, STUBBORN
from tests.remote.place import Place, python, wait_for
from tests.remote.test_procfs import DOUBLE_FORK
from tests.support import require
from torchfab.remote import job_files, procfs
from torchfab.remote.job import status as job_status
from torchfab.remote.job import stop as job_stop

SESSION = "no-such-session-node0"


@pytest.fixture(autouse=True)
def _own_tmux(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A separate tmux server that is never started; `stop` closes a session on it."""
    require("tmux")
    with TemporaryDirectory(prefix="tf-") as folder:
        monkeypatch.setenv("TMUX_TMPDIR", folder)
        yield


def status(place: Place) -> dict[str, Any]:
    return job_status.status(str(place.folder), place.job_id, 0)


def one(place: Place) -> dict[str, Any]:
    """Return the status of the only process."""
    (found,) = status(place)["processes"]
    return dict(found)


def stop(place: Place, grace_s: float = 10.0) -> dict[str, Any]:
    return job_stop.stop(str(place.folder), place.job_id, 0, SESSION, grace_s)


def started(place: Place, *argv: str, lines: int = 1, **spec: Any) -> subprocess.Popen[bytes]:
    """Supervise a process, and wait until it and its children have reported that they are ready."""
    folder = place.prepare(argv, **spec)
    supervisor = place.supervise(folder.name)
    wait_for(
        lambda: (folder / job_files.OUTPUT).exists() and (folder / job_files.OUTPUT).read_text().count("ready") == lines
    )
    wait_for(lambda: place.read(folder, job_files.STARTED))
    return supervisor


# ---- status


def test_a_process_that_has_not_started_is_starting(place: Place) -> None:
    place.prepare(["true"])
    found = one(place)
    assert (found["state"], found["pid"], found["ended"], found["ranks"]) == ("starting", None, None, [])
    assert not job_status.has_ended(str(place.folder))


def test_a_process_of_an_earlier_boot_that_never_started_is_lost(place: Place) -> None:
    folder = place.prepare(python("pass"))
    spec = job_files.read_json(str(folder / job_files.SPEC))
    for boot_id, state in ((procfs.boot_id(), "starting"), ("another", "lost")):
        job_files.write_json(
            str(folder / job_files.SPEC), {**spec, "held_by": {"pid": 1, "start_time": 1, "boot_id": boot_id}}
        )
        assert one(place)["state"] == state


def test_a_process_whose_supervisor_was_killed_before_its_start_is_lost(place: Place) -> None:
    folder = place.prepare(python("pass"))
    for pid, state in ((os.getpid(), "starting"), (2**22 + 1, "lost")):
        (folder / job_files.READY).write_text(str(pid))
        assert one(place)["state"] == state


def test_a_running_process_is_running_with_its_last_line(place: Place) -> None:
    started(place, "sh", "-c", "echo first; echo ready; exec sleep 600")
    found = one(place)
    assert (found["state"], found["code"], found["ended"]) == ("running", None, None)
    assert found["last_line"]["text"] == "ready"
    assert abs(time.time() - found["last_line"]["time"]) < 60
    assert procfs.is_alive(found["pid"], place.read(place.folder / "agent", job_files.STARTED)["start_time"])


@pytest.mark.parametrize(
    ("how", "state", "code"), [("exit 0", "succeeded", 0), ("exit 7", "failed", 7), ("kill -9 $$", "failed", -9)]
)
def test_a_process_that_ended_has_its_code(place: Place, how: str, state: str, code: int) -> None:
    place.run(["sh", "-c", how])
    found = one(place)
    assert (found["state"], found["code"], found["reason"]) == (state, code, "")
    assert found["started"] <= found["ended"] <= time.time()
    assert job_status.has_ended(str(place.folder))


def test_a_process_that_cannot_start_has_failed_with_the_reason(place: Place) -> None:
    place.run(["/no/such/program"])
    found = one(place)
    assert (found["state"], found["reason"]) == ("failed", "cannot start /no/such/program: No such file or directory")
    assert job_status.has_ended(str(place.folder))


def test_a_process_is_lost_if_its_supervisor_was_killed(place: Place) -> None:
    supervisor = started(place, *python(STUBBORN))
    supervisor.kill()
    supervisor.wait()
    found = status(place)
    assert [(each["state"], each["reason"]) for each in found["processes"]] == [("lost", "its supervisor was killed")]
    assert len(found["left"]) == 1
    assert job_status.has_ended(str(place.folder))


def test_a_process_of_an_earlier_boot_is_lost(place: Place) -> None:
    started(place, "sh", "-c", "echo ready; exec sleep 600")
    path = place.folder / "agent" / job_files.STARTED
    job_files.write_json(str(path), {**job_files.read_json(str(path)), "boot_id": "another"})
    assert (one(place)["state"], one(place)["reason"]) == ("lost", "the node was restarted")


def test_a_reused_pid_is_not_taken_for_the_supervisor(place: Place) -> None:
    started(place, "sh", "-c", "echo ready; exec sleep 600")
    path = place.folder / "agent" / job_files.STARTED
    job_files.write_json(str(path), {**job_files.read_json(str(path)), "supervisor_start_time": 1})
    assert one(place)["state"] == "lost"


def test_a_process_that_is_a_rank_is_listed_even_if_it_ended_early(place: Place) -> None:
    place.run(["sh", "-c", "exit 7"], name="rank-3", rank=3)
    (rank,) = one(place)["ranks"]
    assert (rank["rank"], rank["code"]) == (3, 7)


def test_a_job_without_a_folder_does_not_exist_and_has_ended(tmp_path: Path) -> None:
    found = job_status.status(str(tmp_path / "gone"), "a-job", 0)
    assert (found["exists"], found["processes"]) == (False, [])
    assert job_status.has_ended(str(tmp_path / "gone"))


def test_exit_codes_of_short_ranks_come_from_torchruns_report(tmp_path: Path) -> None:
    path = tmp_path / job_files.OUTPUT
    path.write_text("""\
train.py FAILED
Failures:
[1]:
  time      : 2026-01-01_00:00:00
  host      : node2
  rank      : 3 (local_rank: 1)
  exitcode  : -15 (pid: 4712)
  error_file: <N/A>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  host      : node2
  rank      : 2 (local_rank: 0)
  exitcode  : 7 (pid: 4711)
  error_file: <N/A>
""")
    assert job_status.reported_failures(str(path)) == [{"rank": 2, "code": 7}, {"rank": 3, "code": -15}]


@pytest.mark.parametrize(
    "text", ["", "rank", "rank : x\nexitcode : 1", "exitcode : 1", "rank : 3\nexitcode :", "rank : 3\nexitcode : <N/A>"]
)
def test_text_that_only_resembles_a_report_is_not_parsed(text: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(text)
    assert job_status.reported_failures(str(tmp_path / "log")) == []


def test_a_tail_is_the_end_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" * 20_000 + b"\r10%\r\xff end")
    assert job_status.tail(str(tmp_path / "log")) == "10%\n\ufffd end"
    (tmp_path / "log").write_bytes(b"short\rend")
    assert job_status.tail(str(tmp_path / "log")) == "short\nend"
    assert job_status.tail(str(tmp_path / "gone")) == ""


@pytest.mark.parametrize(
    ("cut", "whole"),
    [("cret\nnext one\n", "next one\n"), ("cret and more", "and more"), ("cretcretcret", ""), ("\nall", "all")],
)
def test_a_cut_text_starts_with_a_complete_line_or_word(cut: str, whole: str) -> None:
    assert job_status.drop_partial_line(cut) == whole


# ---- stop


def test_stop_ends_a_job_that_handles_term_and_proves_it(place: Place) -> None:
    started(place, "sh", "-c", "echo ready; exec sleep 600")
    report = stop(place)
    assert (report["asked"], report["killed"], report["left"]) == (1, [], [])
    assert report["seconds"] < 9
    assert place.running() == []
    assert one(place)["state"] == "stopped"


def test_stop_kills_processes_that_ignore_term_after_the_grace_period(place: Place) -> None:
    started(place, *python(STUBBORN))
    report = stop(place, 0.3)
    assert (report["asked"], len(report["killed"]), report["left"]) == (1, 1, [])
    assert 0.25 < report["seconds"] < 9  # the default grace period is 10 s
    assert (one(place)["state"], one(place)["code"]) == ("stopped", -9)


def test_stop_ends_processes_that_escaped_from_their_agent(place: Place) -> None:
    started(place, *python(ESCAPING, "time.sleep(600)"))
    report = stop(place, 0.3)
    assert (report["asked"], report["left"]) == (2, [])
    assert place.running() == []


def test_stop_ends_processes_without_a_supervisor(place: Place) -> None:
    supervisor = started(place, *python(ESCAPING, "time.sleep(600)"))
    supervisor.kill()
    supervisor.wait()
    wait_for(lambda: len(place.running()) == 1)
    report = stop(place, 0.2)
    assert (report["asked"], len(report["killed"]), report["left"]) == (1, 1, [])


def test_stop_ends_a_supervisor_that_was_stopped_by_a_signal(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_stop, "_SUPERVISORS_S", 0.1)
    supervisor = started(place, "sh", "-c", "echo ready; exec sleep 600")
    supervisor.send_signal(signal.SIGSTOP)
    report = stop(place, 0.1)
    assert report["left"] == []
    assert supervisor.wait(60) == -signal.SIGKILL


def test_a_second_stop_is_harmless_and_reports_that_nothing_ran(place: Place) -> None:
    started(place, "sh", "-c", "echo ready; exec sleep 600")
    stop(place)
    ended = place.read(place.folder / "agent", job_files.EXIT)
    again = stop(place)
    assert (again["asked"], again["killed"], again["left"]) == (0, [], [])
    assert place.read(place.folder / "agent", job_files.EXIT) == ended


def test_a_failed_job_stays_failed_after_a_stop(place: Place) -> None:
    place.run(["sh", "-c", "exit 7"])
    stop(place)
    assert one(place)["state"] == "failed"


def test_stop_does_not_end_other_jobs_with_a_longer_name(place: Place, tmp_path: Path) -> None:
    longer = Place(tmp_path / "other" / "node-0", f"{place.job_id}-{secrets.token_hex(2)}")
    try:
        for each in (place, longer):
            started(each, "sh", "-c", "echo ready; exec sleep 600")
        stop(place)
        assert (len(place.running()), len(longer.running())) == (0, 1)
        assert one(longer)["state"] == "running"
    finally:
        longer.end()


def test_stop_finds_a_process_without_any_folder(place: Place, tmp_path: Path) -> None:
    place.begin(python(DOUBLE_FORK, str(tmp_path / "pid")), {**os.environ, **place.marks}).wait()
    wait_for(lambda: len(place.running()) == 1)
    report = job_stop.stop(str(tmp_path / "gone" / "node-0"), place.job_id, 0, SESSION, 1.0)
    assert (report["asked"], report["left"]) == (1, [])

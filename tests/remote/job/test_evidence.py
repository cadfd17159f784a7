"""A node's evidence of how a job ended: bounded, complete, and never the reason that an answer fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.recorded.recordings import names, recording
from tests.remote.place import Place, memory_group, python, removed, wait_for
from tests.support import fuzzed
from torchfab.remote import job_files, procfs
from torchfab.remote.host import kernel_log
from torchfab.remote.job import evidence, status

RANK_LOGS = r"logs/[^/]+/attempt_(?P<attempt>\d+)/(?P<local_rank>\d+)/std(?:out|err)\.log"


def rank_folder(place: Place, attempt: int, local_rank: int, error: Any = None) -> Path:
    """Make torchrun's folder of a rank."""
    folder = place.folder / "agent" / "logs" / "id" / f"attempt_{attempt}" / str(local_rank)
    folder.mkdir(parents=True)
    (folder / "stderr.log").write_text(f"attempt {attempt} of {local_rank}\n")
    if error is not None:
        (folder / "error.json").write_text(error if isinstance(error, str) else json.dumps(error))
    return folder


def error(text: str, stack: str = "") -> dict[str, Any]:
    return {"message": {"message": text, "extraInfo": {"py_callstack": stack, "timestamp": "1"}}}


def collected(folder: Path, max_bytes: int = 512 * 1024, search_s: float = 8.0) -> dict[str, Any]:
    """Return the evidence in a folder."""
    return evidence.collect(str(folder), max_bytes, search_s)


def sent(log: dict[str, Any]) -> str:
    """Return the text of a log that is sent."""
    return "".join(part["text"] for part in log["parts"])


def test_only_the_end_of_a_10_gigabyte_log_is_read(place: Place) -> None:
    place.prepare(["true"])
    path = place.folder / "agent" / job_files.OUTPUT
    with path.open("wb") as file:
        file.truncate(10 * 1024**3)
        file.seek(0, os.SEEK_END)
        file.write(b"\nthe last words\n")
    (log,) = collected(place.folder, search_s=0.2)["logs"]
    assert log["unsearched"] > 0
    assert sent(log) == "the last words\n"  # the line before, of which only the end was read, is dropped
    assert (log["label"], log["size"]) == ("agent", 10 * 1024**3 + 16)


def test_a_huge_log_does_not_take_the_time_of_the_others(place: Place) -> None:
    place.prepare(["true"], rank_logs=RANK_LOGS)
    with (rank_folder(place, 0, 0) / "stderr.log").open("wb") as file:
        file.truncate(50 * 1024**3)
    for local_rank in (1, 2):
        text = "Traceback (most recent call last)\n" + "x" * 99 * 40_000
        (rank_folder(place, 0, local_rank) / "stderr.log").write_text(text)
    logs = collected(place.folder, search_s=0.5)["logs"]
    assert [(log["label"], log["unsearched"] > 0) for log in logs] == [
        ("local 0", True),
        ("local 1", False),
        ("local 2", False),
    ]
    assert all("Traceback" in sent(log) for log in logs[1:])


def test_the_logs_of_many_ranks_share_the_size_limit(place: Place) -> None:
    place.prepare(["true"], rank_logs=RANK_LOGS)
    for local_rank in range(64):
        (rank_folder(place, 0, local_rank) / "stderr.log").write_text("x" * 100_000)
    logs = collected(place.folder)["logs"]
    assert len(logs) == 64
    assert sum(len(sent(log)) for log in logs) <= 512 * 1024


def test_logs_are_of_the_last_attempt_and_error_files_of_all(place: Place) -> None:
    place.prepare(["true"], rank_logs=RANK_LOGS)
    rank_folder(place, 0, 0, error("ValueError: first", "Traceback ..."))
    rank_folder(place, 1, 0, error("ValueError: second"))
    report = collected(place.folder)
    assert [sent(log) for log in report["logs"]] == ["attempt 1 of 0\n"]
    assert [(each["attempt"], each["message"]) for each in report["reports"]] == [
        (0, "ValueError: first"),
        (1, "ValueError: second"),
    ]
    assert report["reports"][0]["traceback"] == "Traceback ..."


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"message": null}', '{"message": {"extraInfo": 7}}', "x" * 300_000]
)
def test_an_invalid_error_file_is_skipped(place: Place, text: str) -> None:
    place.prepare(["true"], rank_logs=RANK_LOGS)
    rank_folder(place, 0, 0, text)
    assert collected(place.folder)["reports"] == []


def test_an_error_file_with_a_plain_text_message_is_reported(place: Place) -> None:
    place.prepare(["true"], rank_logs=RANK_LOGS)
    rank_folder(place, 0, 0, {"message": "it broke"})
    assert [report["message"] for report in collected(place.folder)["reports"]] == ["it broke"]


def test_the_signal_that_ended_a_process_is_reported(place: Place) -> None:
    place.prepare(python("import time; time.sleep(60)"))
    supervisor = place.supervise()
    wait_for(lambda: place.read(place.folder / "agent", job_files.STARTED))
    supervisor.send_signal(signal.SIGHUP)
    os.kill(supervisor.pid, signal.SIGTERM)
    supervisor.wait(60)
    assert collected(place.folder)["ends"]["agent"]["asked"] in ("SIGHUP", "SIGTERM")


def test_a_halted_process_is_named_and_disks_are_measured(place: Place) -> None:
    place.prepare(python("import time; time.sleep(60)"))
    place.supervise()
    started = wait_for(lambda: place.read(place.folder / "agent", job_files.STARTED))
    os.kill(started["pid"], signal.SIGSTOP)
    wait_for(lambda: procfs.stat_fields(started["pid"])[:1] == ["T"])
    folder = str(place.folder)
    job_status = status.status(folder, place.job_id, 0)
    report = evidence._machine_evidence(folder, job_status, [])
    assert report["halted"] == ["agent"]
    assert all(disk["size"] >= disk["free"] >= 0 for disk in report["disks"])
    assert {folder, "/tmp"} <= {disk["path"] for disk in report["disks"]}


def test_a_missing_folder_is_not_an_error(tmp_path: Path) -> None:
    assert collected(tmp_path / "gone") == {"ends": {}, "logs": [], "reports": []}


# ---- the kernel


def test_a_kernel_log_record_has_a_time_and_a_text() -> None:
    record = "3,1234,5000001,-;Out of memory: Killed process 7 (python3)\n SUBSYSTEM=x\n"
    assert kernel_log.parse(record) == (5.000001, "Out of memory: Killed process 7 (python3)")


@fuzzed(st.text())
def test_any_kernel_log_record_is_parsed(text: str) -> None:
    stamp, found = kernel_log.parse(text)
    assert stamp >= 0.0
    assert "\n" not in found


def test_kernel_messages_after_the_end_of_the_job_are_left_out() -> None:
    lines: list[list[Any]] = [[when, "x[1]: segfault at 0"] for when in (100.0, 160.0, 161.0)]
    assert [when for when, _ in kernel_log._kept(lines, 50.0, 160.0)] == [100.0, 160.0]


def test_older_and_irrelevant_kernel_messages_are_left_out() -> None:
    lines = [[1.0, "NVRM: Xid 79"], [100.0, "br0: port 1 entered blocking state"], [101.0, "NVRM: Xid 79"]]
    assert kernel_log._kept(lines, 100.0) == [lines[2]]


@pytest.mark.parametrize("name", [name for name in names("kernel") if name.startswith("oom-")])
def test_recorded_kernel_kills_are_kept(name: str) -> None:
    lines = recording("kernel", name).splitlines()
    kept = [text for _, text in kernel_log._kept([[1.0, line] for line in lines], 0.0)]
    signs = ("invoked oom-killer", "oom-kill:", "out of memory", "Out of memory", "Killed process", "oom_reaper")
    assert kept == [line for line in lines if any(sign in line for sign in signs)]
    assert any("Killed process" in line for line in kept)


def test_a_storm_of_one_xid_hides_neither_another_one_nor_a_kill() -> None:
    storm = recording("kernel", "xid-2025-13-43-storm.txt").splitlines() * 20
    lost = next(line for line in recording("kernel", "xid-535.161.07-79.txt").splitlines() if "Xid" in line)
    kill = next(line for line in recording("kernel", "oom-4.18-global.txt").splitlines() if "Killed process" in line)
    lines = [[float(at), text] for at, text in enumerate([*storm, lost, *storm, kill, *storm])]
    kept = kernel_log._kept(lines, 0.0)
    assert len(kept) == kernel_log._MOST_LINES
    assert kept == sorted(kept)
    assert {lost, kill} <= {text for _, text in kept}
    assert (kept[0], kept[-1]) == (lines[0], lines[-1])


@pytest.mark.parametrize("record", recording("kernel", "kmsg-records-gpud.txt").splitlines())
def test_the_records_of_a_real_kernel_are_read(record: str) -> None:
    stamp, text = kernel_log.parse(record)
    assert stamp > 200
    assert text == record.partition(";")[2]


def test_an_unreadable_kernel_log_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[str]:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(kernel_log, "_records", refuse)
    monkeypatch.setenv("PATH", "/nowhere")
    assert kernel_log.read_since(0.0) == {"lines": [], "unread": "/dev/kmsg: Operation not permitted"}


# ---- the control group


def test_memory_kills_in_the_supervisors_control_group_are_counted(place: Place) -> None:
    group = memory_group("torchfab-evidence")
    try:
        place.prepare(python("import os; kept = [bytearray(os.urandom(2**20)) for _ in range(512)]"))
        program = [sys.executable, "-I", "-S", str(place.folder / job_files.BUNDLE), "supervise", "agent"]
        enter = f'echo $$ > {group}/cgroup.procs; exec "$@"'
        subprocess.run(["sh", "-c", enter, "sh", *program], check=False, env={"PATH": os.environ["PATH"]}, timeout=60)
        end = place.read(place.folder / "agent", job_files.EXIT)
        assert (end["code"], end["oom_kills"]) == (-9, 1)
        assert collected(place.folder)["ends"]["agent"]["oom_kills"] == 1
    finally:
        wait_for(lambda: removed(group))


def test_a_missing_process_has_no_control_group() -> None:
    assert procfs.oom_kills("999999999") is None

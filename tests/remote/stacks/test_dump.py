"""Stack dumps of the processes of a job on a node, by py-spy or by a signal."""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.remote.place import Place, python, wait_for
from tests.support import absent
from torchfab.remote import job_files, procfs
from torchfab.remote.job import recorder
from torchfab.remote.stacks import dump, pyspy

SPY = str(Path(sys.executable).with_name("py-spy"))
SLEEPER = "import time\ndef doze():\n    time.sleep(60)\nprint('up', flush=True)\ndoze()\n"
REQUEST: dict[str, Any] = {"ranks": None, "native": False, "timeout_s": 10.0, "signal": ""}


@pytest.fixture
def start_rank(place: Place) -> Any:
    """Return start_rank(code, argv...): it starts a supervised rank and waits until the code has printed `up`."""

    if not os.access(SPY, os.X_OK):
        absent("py-spy is not installed")
    if os.geteuid() and job_files.read_json("/proc/sys/kernel/yama/ptrace_scope"):
        absent("kernel.yama.ptrace_scope forbids ptrace of processes that are not our own children")

    def begin(code: str, *before: str, **spec: Any) -> dict[str, Any]:
        folder = place.prepare((*before, *python(code)), env={"RANK": "0"}, **spec)
        place.supervise()
        wait_for(lambda: place.read(folder, job_files.RANKS))
        wait_for(lambda: "up" in (folder / job_files.OUTPUT).read_text())
        return dict(place.read(folder, job_files.RANKS)[-1])

    return begin


def dump_node(place: Place, **values: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dump.dump_node(str(place.folder), {**REQUEST, **values})))  # type: ignore[no-any-return]


def functions(entry: dict[str, Any]) -> list[str]:
    return [frame[0] for frame in entry["threads"][0]["frames"]]


def test_a_rank_is_dumped_with_its_state_and_source_lines(place: Place, start_rank: Any, tmp_path: Path) -> None:
    script = tmp_path / "doze.py"
    script.write_text(SLEEPER)
    rank = start_rank(f"import runpy; runpy.run_path({str(script)!r})")
    (entry,) = dump_node(place)["ranks"]
    assert (entry["rank"], entry["pid"], entry["state"], entry["by"]) == (0, rank["pid"], "S", "py-spy")
    assert functions(entry)[:2] == ["doze", "<module>"]
    assert entry["threads"][0]["frames"][0][2:] == [3, "time.sleep(60)"]


def test_a_stopped_rank_is_dumped_and_stays_stopped(place: Place, start_rank: Any) -> None:
    rank = start_rank(SLEEPER)
    os.kill(rank["pid"], signal.SIGSTOP)
    wait_for(lambda: procfs.stat_fields(rank["pid"])[0] == "T")
    (entry,) = dump_node(place)["ranks"]
    assert (entry["state"], functions(entry)[0]) == ("T", "doze")
    assert procfs.stat_fields(rank["pid"])[0] == "T"


def test_the_interpreter_below_a_shell_script_is_dumped(place: Place, start_rank: Any) -> None:
    rank = start_rank(SLEEPER, "/bin/sh", "-c", '"$@"; exit', "sh")
    (entry,) = dump_node(place)["ranks"]
    assert entry["pid"] != rank["pid"]
    assert functions(entry)[0] == "doze"


def test_only_the_requested_ranks_are_dumped(place: Place, start_rank: Any) -> None:
    start_rank(SLEEPER)
    assert dump_node(place, ranks=[1, 2])["ranks"] == []


def test_a_rank_that_has_ended_is_reported_as_ended(place: Place) -> None:
    place.run(python("import time; time.sleep(0.5); raise SystemExit(7)"), env={"RANK": "0"})
    (entry,) = dump_node(place)["ranks"]
    assert (entry["rank"], entry["code"], entry["ended"] is not None) == (0, 7, True)


def test_a_process_without_ranks_is_dumped_itself(place: Place) -> None:
    folder = place.prepare(python(SLEEPER))
    place.supervise()
    wait_for(lambda: (folder / job_files.OUTPUT).exists() and "up" in (folder / job_files.OUTPUT).read_text())
    (entry,) = dump_node(place)["ranks"]
    assert (entry["process"], entry["rank"], functions(entry)[0]) == ("agent", None, "doze")


def test_a_node_without_py_spy_requests_one_and_removes_it(
    place: Place, start_rank: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    start_rank(SLEEPER)
    monkeypatch.setattr(dump, "_interpreter_folders", lambda *_: [])
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "there is none"))
    answer = dump_node(place)
    assert answer["wants"] is True
    program = base64.b64encode(zlib.compress(Path(SPY).read_bytes(), 1)).decode()
    answer = dump_node(place, program=program)
    assert (answer["spy"], functions(answer["ranks"][0])[0]) == ("sent", "doze")
    assert not list(Path("/dev/shm").glob("torchfab-*/py-spy"))
    assert not list(place.folder.glob("torchfab-*"))


def test_without_py_spy_a_rank_dumps_its_stacks_on_the_signal(place: Place, start_rank: Any) -> None:
    start_rank("import faulthandler, signal; faulthandler.register(signal.SIGUSR2)\n" + SLEEPER)
    (entry,) = without_py_spy(place, "SIGUSR2")
    assert (entry["by"], functions(entry)) == ("SIGUSR2", ["doze", "<module>"])


def test_without_py_spy_the_stack_of_the_probe_is_taken_before_any_signal(place: Place, start_rank: Any) -> None:
    rank = start_rank(SLEEPER)
    known = {"pid": rank["pid"], "stack": [["doze", "/w/train.py", 3]]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyspy, "find", lambda _: ("", ""))
        patch.setattr(recorder, "collectives", lambda *_: [known])
        found = dump_node(place, program="", signal="SIGUSR2")
    assert found["collectives"] == [known]
    assert [entry["by"] for entry in found["ranks"]] == ["probe"]
    assert found["ranks"][0]["threads"][0]["frames"] == [["doze", "/w/train.py", 3, ""]]


def test_a_rank_that_does_not_catch_the_signal_is_not_sent_it(place: Place, start_rank: Any) -> None:
    rank = start_rank(SLEEPER)
    (entry,) = without_py_spy(place, "SIGUSR2")
    assert (entry["threads"], entry["signal"]) == ([], "it does not catch SIGUSR2")
    assert procfs.is_alive(rank["pid"], rank["start_time"])


def test_a_signal_handler_that_writes_no_stacks_is_reported(place: Place, start_rank: Any) -> None:
    start_rank("import signal; signal.signal(signal.SIGUSR2, lambda *_: print('hm', flush=True))\n" + SLEEPER)
    (entry,) = without_py_spy(place, "SIGUSR2")
    assert entry["signal"] == "it wrote no stacks within 2 s of SIGUSR2"


def without_py_spy(place: Place, name: str) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyspy, "find", lambda _: ("", ""))
        return list(dump_node(place, program="", signal=name)["ranks"])


def test_a_hanging_py_spy_times_out_and_leaves_no_rank_stopped(place: Place, start_rank: Any, tmp_path: Path) -> None:
    rank = start_rank(SLEEPER)
    fake = tmp_path / "py-spy"
    fake.write_text('#!/bin/sh\nkill -STOP "$4"\nexec sleep 60\n')
    fake.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyspy, "find", lambda _: (str(fake), "on the PATH"))
        (entry,) = dump_node(place, timeout_s=0.3)["ranks"]
    assert entry["problem"].startswith("no answer from py-spy")
    wait_for(lambda: procfs.stat_fields(rank["pid"])[0] == "S")


def test_a_rank_under_a_debugger_reports_the_tracer(place: Place, start_rank: Any) -> None:
    rank = start_rank(SLEEPER)
    seize = f"import ctypes, time; ctypes.CDLL(None).ptrace(0x4206, {rank['pid']}, 0, 0); time.sleep(60)"
    debugger = place.begin(python(seize), env={})
    wait_for(lambda: procfs.status_field(rank["pid"], "TracerPid") == str(debugger.pid))
    (entry,) = dump_node(place)["ranks"]
    assert (entry["tracer"], entry["threads"]) == (debugger.pid, [])

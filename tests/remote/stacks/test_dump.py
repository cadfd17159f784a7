"""The stacks of processes on a node: what py-spy says, what faulthandler writes, and who is asked by which way."""

from __future__ import annotations

import base64
import faulthandler
import json
import os
import signal
import sys
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.remote.place import Place, python, wait_for
from tests.support import absent, fuzzed
from torchfab.remote import files, procfs
from torchfab.remote.stacks import dump, pyspy
from torchfab.remote.stacks import faulthandler as faults

SPY = str(Path(sys.executable).with_name("py-spy"))
SLEEPER = "import time\ndef doze():\n    time.sleep(60)\nprint('up', flush=True)\ndoze()\n"
REQUEST: dict[str, Any] = {"ranks": None, "native": False, "timeout_s": 10.0, "signal": ""}

# What py-spy 0.4.3 printed: as an ordinary user; without CAP_SYS_PTRACE in a container; of `sleep`; of a stopped one.
RECORDED = {
    """Permission Denied: Try running again with elevated permissions by going 'sudo env "PATH=$PATH" !!'
""": "Permission Denied: Try running again with elevated permissions by going 'sudo env \"PATH=$PATH\" !!'",
    """Error: Failed to get process executable name. Check that the process is running.

Caused by:
    0: Permission denied (os error 13)
    1: Permission denied (os error 13)

Stack backtrace:
   0: <E as anyhow::context::ext::StdError>::ext_context
""": "Failed to get process executable name. Check that the process is running.: Permission denied (os error 13)",
    """Error: Failed to find python version from target process

Stack backtrace:
   0: anyhow::error::<impl anyhow::Error>::msg
""": "Failed to find python version from target process",
    "": "py-spy failed without a word",
}


@pytest.mark.parametrize(("said", "kept"), RECORDED.items())
def test_of_what_py_spy_complains_of_the_words_are_kept_and_no_backtrace(said: str, kept: str) -> None:
    assert pyspy.complaint(said) == kept


def test_of_a_dump_the_main_thread_comes_first() -> None:
    frame = {"name": "f", "filename": "/a.py", "line": 3, "module": None}
    helper = {"os_thread_id": 12, "thread_id": 1, "thread_name": "Loader", "active": True, "frames": [frame]}
    main: dict[str, Any] = {"os_thread_id": 11, "thread_id": 2, "thread_name": None, "active": False, "frames": []}
    assert pyspy.threads_of([helper, main], 11) == [
        {"name": "11", "active": False, "gil": False, "frames": []},
        {"name": "Loader", "active": True, "gil": False, "frames": [["f", "/a.py", 3]]},
    ]


# ---- what faulthandler writes

NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=12)
FRAMES = st.lists(st.tuples(NAMES, NAMES, st.integers(1, 99999)), max_size=5)


def written(threads: Sequence[Sequence[tuple[str, str, int]]]) -> list[str]:
    """Return the lines in which faulthandler tells of threads, given the main one first."""
    lines = []
    for index in reversed(range(len(threads))):
        lines.append(f"{'Current thread' if index == 0 else 'Thread'} 0x{index + 1:016x} (most recent call first):")
        lines += [f'  File "{path}", line {line} in {name}' for name, path, line in threads[index]]
        lines.append("")
    return lines


@given(st.lists(FRAMES, min_size=1, max_size=4))
def test_any_dump_is_read_as_it_was_written(threads: list[list[tuple[str, str, int]]]) -> None:
    found = faults.parse("\n".join(written(threads)))
    assert [[tuple(frame) for frame in each["frames"]] for each in found] == threads


@fuzzed(st.lists(FRAMES, min_size=1, max_size=3), st.lists(st.tuples(st.integers(0, 30), NAMES), max_size=5))
def test_what_the_training_writes_in_between_is_passed_over(
    threads: list[list[tuple[str, str, int]]], noise: list[tuple[int, str]]
) -> None:
    lines = written(threads)
    for place, text in noise:
        lines.insert(place, f"step {text}")
    found = faults.parse("\n".join(lines))
    assert [[tuple(frame) for frame in each["frames"]] for each in found] == threads


@fuzzed(st.text())
def test_any_text_can_be_read(text: str) -> None:
    assert isinstance(faults.parse(text), list)


def test_of_two_dumps_the_first_is_read() -> None:
    lines = written([[("f", "/a.py", 1)]]) + written([[("g", "/a.py", 2)]])
    assert [each["frames"] for each in faults.parse("\n".join(lines))] == [[["f", "/a.py", 1]]]


def test_the_real_faulthandler_is_understood(tmp_path: Path) -> None:
    release = threading.Event()
    helper = threading.Thread(target=release.wait)
    helper.start()
    with (tmp_path / "dump").open("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
    release.set()
    helper.join()
    found = faults.parse((tmp_path / "dump").read_text())
    assert found[0]["frames"][0][0] == "test_the_real_faulthandler_is_understood"
    others = [[frame[0] for frame in each["frames"]] for each in found[1:]]  # those of the test's own runner, too
    assert any("wait" in names for names in others)


@pytest.mark.parametrize(
    ("state", "caught", "name", "answer"),
    [
        ("S", 1 << 11, "SIGUSR2", faults.MAY),
        ("R", 1 << 9, "SIGUSR1", faults.MAY),
        ("S", 1 << 9, "SIGUSR2", "it does not catch SIGUSR2"),
        ("S", 0, "SIGUSR2", "it does not catch SIGUSR2"),
        ("T", 1 << 11, "SIGUSR2", "in state T it hears no signal"),
        ("D", 1 << 11, "SIGUSR2", "in state D it hears no signal"),
        ("S", 1 << 11, "", "torchfab.stacks_signal is empty"),
    ],
)
def test_only_who_catches_the_signal_and_hears_it_is_sent_one(state: str, caught: int, name: str, answer: str) -> None:
    assert faults.may_ask(state, caught, name) == answer


# ---- on a node


@pytest.fixture
def rank_of(place: Place) -> Any:
    """Give rank_of(code, argv...): a supervised rank that runs this code, which has printed `up`."""

    if not os.access(SPY, os.X_OK):
        absent("py-spy is not installed")
    if os.geteuid() and files.read_json("/proc/sys/kernel/yama/ptrace_scope"):
        absent("kernel.yama.ptrace_scope forbids to look into processes that are not one's own children")

    def begin(code: str, *before: str, **spec: Any) -> dict[str, Any]:
        folder = place.prepare((*before, *python(code)), env={"RANK": "0"}, **spec)
        place.supervise()
        wait_for(lambda: place.read(folder, files.RANKS))
        wait_for(lambda: "up" in (folder / files.OUTPUT).read_text())
        return dict(place.read(folder, files.RANKS)[-1])

    return begin


def ask(place: Place, **values: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dump.of_node(str(place.folder), {**REQUEST, **values})))  # type: ignore[no-any-return]


def functions(entry: dict[str, Any]) -> list[str]:
    return [frame[0] for frame in entry["threads"][0]["frames"]]


def test_a_rank_is_seen_with_its_stack_its_state_and_the_text_of_its_line(
    place: Place, rank_of: Any, tmp_path: Path
) -> None:
    script = tmp_path / "doze.py"
    script.write_text(SLEEPER)
    rank = rank_of(f"import runpy; runpy.run_path({str(script)!r})")
    (entry,) = ask(place)["ranks"]
    assert (entry["rank"], entry["pid"], entry["state"], entry["by"]) == (0, rank["pid"], "S", "py-spy")
    assert functions(entry)[:2] == ["doze", "<module>"]
    assert entry["threads"][0]["frames"][0][2:] == [3, "time.sleep(60)"]


def test_a_rank_that_was_stopped_is_read_as_it_is_and_stays_stopped(place: Place, rank_of: Any) -> None:
    rank = rank_of(SLEEPER)
    os.kill(rank["pid"], signal.SIGSTOP)
    wait_for(lambda: procfs.stat_fields(rank["pid"])[0] == "T")
    (entry,) = ask(place)["ranks"]
    assert (entry["state"], functions(entry)[0]) == ("T", "doze")
    assert procfs.stat_fields(rank["pid"])[0] == "T"


def test_below_a_shell_script_the_interpreter_is_looked_into(place: Place, rank_of: Any) -> None:
    rank = rank_of(SLEEPER, "/bin/sh", "-c", '"$@"; exit', "sh")
    (entry,) = ask(place)["ranks"]
    assert entry["pid"] != rank["pid"]
    assert functions(entry)[0] == "doze"


def test_only_the_ranks_that_are_wanted_are_looked_into(place: Place, rank_of: Any) -> None:
    rank_of(SLEEPER)
    assert ask(place, ranks=[1, 2])["ranks"] == []


def test_a_rank_that_has_ended_is_told_as_ended(place: Place) -> None:
    place.run(python("import time; time.sleep(0.5); raise SystemExit(7)"), env={"RANK": "0"})
    (entry,) = ask(place)["ranks"]
    assert (entry["rank"], entry["code"], entry["ended"] is not None) == (0, 7, True)


def test_a_process_that_has_no_rank_yet_stands_in_for_them(place: Place) -> None:
    folder = place.prepare(python(SLEEPER))
    place.supervise()
    wait_for(lambda: (folder / files.OUTPUT).exists() and "up" in (folder / files.OUTPUT).read_text())
    (entry,) = ask(place)["ranks"]
    assert (entry["process"], entry["rank"], functions(entry)[0]) == ("agent", None, "doze")


def test_without_py_spy_the_node_asks_for_one_which_is_removed_again(
    place: Place, rank_of: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rank_of(SLEEPER)
    monkeypatch.setattr(dump, "_places", lambda *_: [])
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "there is none"))
    told = ask(place)
    assert told["wants"] is True
    program = base64.b64encode(zlib.compress(Path(SPY).read_bytes(), 1)).decode()
    told = ask(place, program=program)
    assert (told["spy"], functions(told["ranks"][0])[0]) == ("sent", "doze")
    assert not list(Path("/dev/shm").glob("torchfab-*/py-spy"))
    assert not list(place.folder.glob("torchfab-*"))


def test_without_any_py_spy_a_rank_that_catches_the_signal_writes_its_stacks(place: Place, rank_of: Any) -> None:
    rank_of("import faulthandler, signal; faulthandler.register(signal.SIGUSR2)\n" + SLEEPER)
    (entry,) = without_py_spy(place, "SIGUSR2")
    assert (entry["by"], functions(entry)) == ("SIGUSR2", ["doze", "<module>"])


def test_a_rank_that_does_not_catch_it_gets_no_signal_and_lives(place: Place, rank_of: Any) -> None:
    rank = rank_of(SLEEPER)
    (entry,) = without_py_spy(place, "SIGUSR2")
    assert (entry["threads"], entry["signal"]) == ([], "it does not catch SIGUSR2")
    assert procfs.is_alive(rank["pid"], rank["start_time"])


def test_a_handler_that_writes_no_stacks_is_said(place: Place, rank_of: Any) -> None:
    rank_of("import signal; signal.signal(signal.SIGUSR2, lambda *_: print('hm', flush=True))\n" + SLEEPER)
    (entry,) = without_py_spy(place, "SIGUSR2")
    assert entry["signal"] == "it wrote no stacks within 2 s of SIGUSR2"


def without_py_spy(place: Place, name: str) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyspy, "find", lambda _: ("", ""))
        return list(ask(place, program="", signal=name)["ranks"])


def test_a_py_spy_that_hangs_is_given_up_and_leaves_no_rank_stopped(place: Place, rank_of: Any, tmp_path: Path) -> None:
    rank = rank_of(SLEEPER)
    fake = tmp_path / "py-spy"
    fake.write_text('#!/bin/sh\nkill -STOP "$4"\nexec sleep 60\n')
    fake.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyspy, "find", lambda _: (str(fake), "on the PATH"))
        (entry,) = ask(place, timeout_s=0.3)["ranks"]
    assert entry["problem"].startswith("no answer from py-spy")
    wait_for(lambda: procfs.stat_fields(rank["pid"])[0] == "S")


def test_a_rank_that_a_debugger_holds_names_it(place: Place, rank_of: Any) -> None:
    rank = rank_of(SLEEPER)
    seize = f"import ctypes, time; ctypes.CDLL(None).ptrace(0x4206, {rank['pid']}, 0, 0); time.sleep(60)"
    debugger = place.begin(python(seize), env={})
    wait_for(lambda: dump._status_field(rank["pid"], "TracerPid") == str(debugger.pid))
    (entry,) = ask(place)["ranks"]
    assert (entry["tracer"], entry["threads"]) == (debugger.pid, [])

"""A notice reaches each rank once, and neither its launcher, its loaders, nor a rank that it would end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.remote.place import Place, wait_for
from torchfab.remote import job_files, procfs
from torchfab.remote.job import rank_signals

# A launcher and two ranks, each with a helper; every process appends what it gets to a file of its own.
RECORDER = """
import os, signal, subprocess, sys, time
role, out = sys.argv[1], sys.argv[2]
def on_signal(number, frame):
    with open(f"{out}/{role}", "a") as file:
        file.write("got\\n")
if role != "deaf-1":
    signal.signal(signal.SIGUSR1, on_signal)
if role == "launcher":
    for number, kind in enumerate(sys.argv[3:]):
        env = {**os.environ, "RANK": str(number)}
        subprocess.Popen([sys.executable, "-c", open(f"{out}/program").read(), kind, out], env=env)
elif not role.startswith("helper"):
    subprocess.Popen([sys.executable, "-c", open(f"{out}/program").read(), f"helper-of-{role}", out])
open(f"{out}/ready-{role}", "w").close()
while True:
    time.sleep(0.05)
"""


def launched(place: Place, out: Path, *ranks: str) -> subprocess.Popen[bytes]:
    """Start a supervisor whose launcher has these ranks; return it once all processes are ready."""
    (out / "program").write_text(RECORDER)
    place.prepare([sys.executable, "-c", RECORDER, "launcher", str(out), *ranks])
    supervisor = place.supervise()
    wait_for(lambda: len(list(out.glob("ready-*"))) == 1 + 2 * len(ranks))
    wait_for(lambda: len(place.read(place.folder / "agent", job_files.RANKS) or []) == len(ranks))
    return supervisor


def signalled(place: Place, **request: Any) -> list[tuple[Any, ...]]:
    answer = rank_signals.signal_ranks(str(place.folder), {"signal": "SIGUSR1", "ranks": None, "send": True, **request})
    return sorted((each["rank"], each["effect"], each["sent"]) for each in answer["ranks"])


def test_a_notice_goes_once_to_each_rank_and_to_nothing_above_or_below(place: Place, tmp_path: Path) -> None:
    launched(place, tmp_path, "rank-0", "rank-1")
    assert signalled(place) == [(0, "handled", True), (1, "handled", True)]
    wait_for((tmp_path / "rank-1").exists)  # the kernel merges two equal signals that wait
    assert signalled(place, ranks=[1]) == [(1, "handled", True)]
    wait_for(lambda: (tmp_path / "rank-1").read_text() == "got\n" * 2)
    wait_for((tmp_path / "rank-0").exists)
    assert (tmp_path / "rank-0").read_text() == "got\n"
    assert {path.name for path in tmp_path.glob("*") if path.is_file() and "ready" not in path.name} == {
        *("program", "rank-0", "rank-1")
    }


def test_a_rank_without_a_handler_gets_no_notice(place: Place, tmp_path: Path) -> None:
    launched(place, tmp_path, "rank-0", "deaf-1")
    assert signalled(place) == [(0, "handled", True), (1, "ends", False)]
    assert signalled(place, signal="SIGWINCH", ranks=[1]) == [(1, "ignored", True)]
    assert signalled(place, send=False) == [(0, "handled", False), (1, "ends", False)]
    assert len(rank_signals.running_ranks(str(place.folder))) == 2


@pytest.mark.parametrize(("shim", "child"), [("rank.py", True), ("other.py", False)])
def test_the_script_below_our_own_program_handles_the_signals(place: Place, shim: str, child: bool) -> None:
    path = place.folder / shim
    path.write_text("import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)")
    process = place.begin([sys.executable, str(path), "import time; time.sleep(60)"], {})
    wait_for(lambda: procfs.children(process.pid))
    expected = procfs.children(process.pid)[0] if child else process.pid
    assert rank_signals.script_of(process.pid, str(place.folder)) == expected


def test_the_effect_of_a_signal_is_read_from_the_kernel(place: Place) -> None:
    # A shell starts a background process with SIGINT ignored; Python then has no handler of its own for it.
    code = "import signal, time; signal.signal(signal.SIGINT, lambda *_: None); "
    code += "signal.signal(signal.SIGHUP, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = place.begin([sys.executable, "-c", code], {})
    wait_for(lambda: rank_signals.effect(process.pid, signal.SIGHUP) == "ignored")
    assert rank_signals.effect(process.pid, signal.SIGUSR1) == "ends"
    assert rank_signals.effect(process.pid, signal.SIGCONT) == "ignored"
    assert rank_signals.effect(process.pid, signal.SIGINT) == "handled"

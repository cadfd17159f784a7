"""Several processes under one supervisor, as real processes without tmux: one does not disturb the others."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Any

import pytest

from tests.remote.job.test_supervisor import ESCAPING, IDLE, STUBBORN
from tests.remote.place import Place, python, wait_for
from torchfab.remote import job_files, procfs
from torchfab.remote.job import status, supervisor
from torchfab.remote.job.process_watch import ProcessWatch

WAIT = python(f"import time; print('ready', flush=True); {IDLE}")
# TMUX names a server that runs: signals of a terminal then mean what they say.
IN_TMUX = {"TMUX": f"/a/socket,{os.getpid()},0"}


def begin(place: Place, *argvs: tuple[str, ...], **spec: Any) -> subprocess.Popen[bytes]:
    """Start one supervisor of processes r0, r1, ...; return it once each has printed a line."""
    names = [f"r{number}" for number in range(len(argvs))]
    for name, argv in zip(names, argvs, strict=True):
        place.prepare(argv, name=name, **spec)
    parent = place.supervise(*names, env=IN_TMUX)
    for name in names:
        wait_for(lambda name=name: "ready" in output(place, name) and record(place, name, job_files.STARTED))  # type: ignore[misc]
    return parent


def output(place: Place, name: str) -> str:
    path = place.folder / name / job_files.OUTPUT
    return path.read_text() if path.exists() else ""


def record(place: Place, name: str, of: str = job_files.EXIT) -> Any:
    return place.read(place.folder / name, of)


def await_record(place: Place, name: str) -> dict[str, Any]:
    """Wait for the final record of the end of a process."""
    found: dict[str, Any] = wait_for(lambda: (end := record(place, name)) and not end.get("cleaning") and end)
    return found


def states(place: Place) -> dict[str, str]:
    found = status.status(str(place.folder), place.job_id, 0)["processes"]
    return {each["name"]: each["state"] for each in found}


def pid_of(place: Place, name: str) -> int:
    return int(record(place, name, job_files.STARTED)["pid"])


def test_one_process_fails_and_the_others_run_on(place: Place) -> None:
    parent = begin(place, WAIT, ("sh", "-c", "echo ready; exit 7"), WAIT)
    end = await_record(place, "r1")
    assert (end["code"], end["asked"], end["left"]) == (7, None, [])
    assert states(place) == {"r0": "running", "r1": "failed", "r2": "running"}
    parent.terminate()
    assert parent.wait(30) == 143
    assert [record(place, name)["asked"] for name in ("r0", "r1", "r2")] == ["SIGTERM", None, "SIGTERM"]
    assert place.running() == []


def test_all_records_name_the_one_supervisor(place: Place) -> None:
    parent = begin(place, WAIT, WAIT)
    assert {record(place, name, job_files.STARTED)["supervisor_pid"] for name in ("r0", "r1")} == {parent.pid}


def test_a_process_that_cannot_be_started_does_not_prevent_the_others(place: Place) -> None:
    place.prepare(["/no/such/program"], name="r0")
    place.prepare(["sh", "-c", "exit 3"], name="r1")
    assert place.supervise("r0", "r1").wait(30) == 127
    assert record(place, "r0")["error"] == "cannot start /no/such/program: No such file or directory"
    assert record(place, "r1")["code"] == 3


def test_what_a_process_leaves_is_ended_with_it_and_nothing_else(place: Place) -> None:
    # Each has a grandchild in another session, with the supervisor as its parent. That of r0 runs on.
    begin(place, python(ESCAPING, "time.sleep(600)"), python(ESCAPING, "time.sleep(0.5); sys.exit(5)"), grace_s=0.2)
    end = await_record(place, "r1")
    assert (end["code"], len(end["left"]), len(end["killed"])) == (5, 1, 1)
    left = place.running()
    assert len(left) == 2, [procfs.describe(pid) for pid in left]
    assert pid_of(place, "r0") in left


def test_the_clean_up_after_one_process_does_not_delay_the_end_of_another(place: Place) -> None:
    leaving = ("sh", "-c", f"{' '.join(map(_quoted, python(STUBBORN)))} & sleep 0.5; exit 1")
    parent = begin(place, leaving, ("sh", "-c", "echo ready; sleep 1; exit 2"), grace_s=4.0)
    assert await_record(place, "r1")["code"] == 2
    assert record(place, "r0")["cleaning"] is True
    assert parent.wait(30) == 1
    assert len(record(place, "r0")["killed"]) == 1


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def test_a_stop_with_less_patience_shortens_a_clean_up(place: Place) -> None:
    leaving = ("sh", "-c", f"{' '.join(map(_quoted, python(STUBBORN)))} & sleep 0.5; exit 1")
    parent = begin(place, leaving, grace_s=500.0)
    wait_for(lambda: record(place, "r0"))
    job_files.write_json(str(place.folder / job_files.STOP), {"time": time.time(), "grace_s": 0.1})
    parent.terminate()
    assert parent.wait(30) == 1
    assert record(place, "r0")["asked"] is None, "it had ended by then"


def test_all_processes_get_term_when_the_supervisor_is_killed(place: Place) -> None:
    parent = begin(place, WAIT, WAIT)
    parent.kill()
    parent.wait()
    wait_for(lambda: place.running() == [])
    assert states(place) == {"r0": "lost", "r1": "lost"}


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_of_the_terminal_ends_only_the_process_of_the_first_window(
    place: Place, number: signal.Signals
) -> None:
    parent = begin(place, WAIT, WAIT)
    parent.send_signal(number)
    assert await_record(place, "r0")["asked"] == number.name
    assert states(place)["r1"] == "running"


def test_user_signals_reach_all_processes(place: Place) -> None:
    telling = python(
        "import signal, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('saved', flush=True))\n"
        f"print('ready', flush=True); {IDLE}"
    )
    parent = begin(place, telling, telling)
    parent.send_signal(signal.SIGUSR1)
    for name in ("r0", "r1"):
        wait_for(lambda name=name: "saved" in output(place, name))  # type: ignore[misc]


# ---- windows


def begin_with_windows(place: Place, env: dict[str, str]) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    """Start the supervisor of two processes; return it, and what shows the log of the second one."""
    for name in ("r0", "r1"):
        place.prepare(WAIT, name=name)
    os.mkfifo(place.folder / "r1" / job_files.WINDOW)
    with (place.folder / "shown").open("wb") as shown:
        viewer = subprocess.Popen(["cat", str(place.folder / "r1" / job_files.WINDOW)], stdout=shown)
    place.started.append(viewer)
    parent = place.supervise("r0", "r1", env=env)
    wait_for(lambda: (place.folder / "shown").read_text() == "ready\n")
    wait_for(lambda: record(place, "r1", job_files.STARTED))
    return parent, viewer


def test_a_viewer_ends_with_its_process(place: Place) -> None:
    _, viewer = begin_with_windows(place, IN_TMUX)
    os.kill(pid_of(place, "r1"), signal.SIGKILL)
    assert viewer.wait(30) == 0
    assert states(place) == {"r0": "running", "r1": "failed"}
    assert not (place.folder / "r1" / job_files.WINDOW).exists()


def test_a_viewer_ends_with_the_supervisor(place: Place) -> None:
    parent, viewer = begin_with_windows(place, IN_TMUX)
    parent.kill()
    assert viewer.wait(30) == 0


def test_a_closed_window_ends_its_process(place: Place) -> None:
    _, viewer = begin_with_windows(place, IN_TMUX)
    viewer.kill()
    assert await_record(place, "r1")["asked"] == "SIGHUP"
    assert states(place) == {"r0": "running", "r1": "failed"}


def test_the_processes_continue_when_tmux_itself_is_killed(place: Place) -> None:
    gone = place.begin(["true"], os.environ)
    gone.wait()
    parent, viewer = begin_with_windows(place, {"TMUX": f"/a/socket,{gone.pid},0"})
    viewer.kill()
    parent.send_signal(signal.SIGHUP)
    parent.send_signal(signal.SIGUSR2)  # handled after it: by default, it ends both
    assert await_record(place, "r0")["signal"] == await_record(place, "r1")["signal"] == "SIGUSR2"
    assert record(place, "r0")["asked"] is record(place, "r1")["asked"] is None


# ---- errors of the supervisor itself


def test_an_unexpected_error_is_written_once_and_other_processes_go_on(place: Place) -> None:
    watches = [ProcessWatch(str(place.prepare(["true"], name=name)), number) for number, name in enumerate(("a", "b"))]
    reached = []

    def step(watch: ProcessWatch) -> None:
        if watch is watches[0]:
            raise ValueError("no such thing")
        reached.append(watch)

    for _ in range(2):
        supervisor.for_each(watches, step)
    assert reached == [watches[1]] * 2
    written = (place.folder / "a" / job_files.ERRORS).read_text()
    assert written.count("ValueError: no such thing") == 1
    assert not (place.folder / "b" / job_files.ERRORS).exists()

"""Reading /proc for real processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.hostile import HOSTILE
from tests.remote.place import Place, python, wait_for
from torchfab.remote import procfs

SLEEP = ("sleep", "600")
# A process whose middle generations end at once, in a session of its own: its parent is init, or a subreaper.
DOUBLE_FORK = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with open(sys.argv[1] + ".new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(sys.argv[1] + ".new", sys.argv[1])
        time.sleep(600)
    os._exit(0)
os.wait()
"""
NO_PID = 2**22 + 1  # above the largest that Linux gives


def ended(code: int | None = None, number: int | None = None) -> subprocess.Popen[bytes]:
    """Return a child that has ended and is not reaped."""
    child = subprocess.Popen(["sh", "-c", f"exit {code}" if number is None else f"kill -{number} $$"])
    wait_for(lambda: procfs.stat_fields(child.pid)[:1] == ["Z"])
    return child


def test_a_process_is_alive_only_with_its_own_start_time() -> None:
    me, started = os.getpid(), procfs.start_time(os.getpid())
    assert started > 0
    assert procfs.is_alive(me, started)
    assert not procfs.is_alive(me, started + 1), "a reused pid is another process"
    assert not procfs.is_alive(NO_PID, 0)
    assert procfs.start_time(NO_PID) == 0


def test_a_zombie_is_not_alive(place: Place) -> None:
    child = ended(0)
    assert not procfs.is_alive(child.pid, procfs.start_time(child.pid))
    assert not procfs.is_running(child.pid)
    child.wait()


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_code_of_a_zombie_is_read_before_it_is_reaped(code: int) -> None:
    child = ended(code)
    assert procfs.exit_code_of_zombie(child.pid) == code
    assert child.wait() == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_the_signal_that_ended_a_zombie_is_its_negative_exit_code(number: int) -> None:
    child = ended(number=number)
    assert procfs.exit_code_of_zombie(child.pid) == -number
    assert child.wait() == -number


def test_a_running_or_missing_process_has_no_exit_code(place: Place) -> None:
    child = place.begin(SLEEP, os.environ)
    assert procfs.exit_code_of_zombie(child.pid) is None
    child.kill()
    child.wait()
    assert procfs.exit_code_of_zombie(child.pid) is None


def test_a_program_name_may_contain_blanks_and_parentheses(place: Place, tmp_path: Path) -> None:
    program = tmp_path / "a) S (b"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    child = place.begin([str(program), "600"], os.environ)
    wait_for(lambda: b"a) S (b" in Path(f"/proc/{child.pid}/stat").read_bytes())
    assert procfs.parents()[child.pid] == os.getpid()
    assert procfs.stat_fields(child.pid)[0] in "SR"


def test_the_environment_that_a_process_was_started_with_is_read(place: Place) -> None:
    sent = {f"V_{number}": text for number, text in enumerate(HOSTILE.values())}
    child = place.begin(["/bin/sleep", "600"], sent)
    assert wait_for(lambda: procfs.environment(child.pid)) == sent
    assert procfs.environment(NO_PID) == {}


def test_children_and_descendants_are_found_through_all_generations(place: Place) -> None:
    root = place.begin(["sh", "-c", "(sleep 601 & sleep 602 & wait) & sleep 603 & wait"], os.environ)

    def commands() -> list[str]:
        return [" ".join(procfs.command_line(pid)) for pid in procfs.descendants([root.pid])]

    # A process that was forked has its parent's command line until it calls exec.
    wait_for(lambda: sum(command.startswith("sleep") for command in commands()) == 3)
    assert len(procfs.children(root.pid)) == 2
    assert sorted(commands()[2:]) == ["sleep 601", "sleep 602"], "nearest first"
    assert procfs.children(NO_PID) == []
    assert procfs.descendants([NO_PID]) == []
    for pid in procfs.descendants([root.pid]):
        os.kill(pid, signal.SIGKILL)


def test_descendants_that_have_ended_are_left_out() -> None:
    child = ended(0)
    assert child.pid not in procfs.descendants([os.getpid()])
    child.wait()


def test_a_double_fork_in_another_session_is_found_by_the_job_id(place: Place, tmp_path: Path) -> None:
    env = {**os.environ, **place.marks}
    place.begin(python(DOUBLE_FORK, str(tmp_path / "pid")), env).wait()
    escaped = int(wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    assert procfs.parents()[escaped] != os.getpid()
    assert place.running() == [escaped]


def test_a_process_without_its_environment_is_found_via_its_parent(place: Place) -> None:
    root = place.begin(["sh", "-c", "env -i sleep 600 & wait"], {**os.environ, **place.marks})
    wait_for(lambda: any("sleep 600" in procfs.describe(pid) for pid in place.running()))
    assert len(place.running()) == 2
    assert root.pid in place.running()


def test_processes_of_other_jobs_and_nodes_are_not_returned(place: Place) -> None:
    other = {
        "a longer id": {"TORCHFAB_JOB_ID": f"{place.job_id}1", "TORCHFAB_NODE_RANK": "0"},
        "a shorter id": {"TORCHFAB_JOB_ID": place.job_id[:-1], "TORCHFAB_NODE_RANK": "0"},
        "another node": {"TORCHFAB_JOB_ID": place.job_id, "TORCHFAB_NODE_RANK": "1"},
        "the id in another value": {"X": f"TORCHFAB_JOB_ID={place.job_id}", "TORCHFAB_NODE_RANK": "0"},
    }
    children = [place.begin(SLEEP, {"PATH": os.environ["PATH"], **env}) for env in other.values()]
    mine = place.begin(SLEEP, {"PATH": os.environ["PATH"], **place.marks})
    wait_for(lambda: all(procfs.environment(child.pid) for child in [*children, mine]))
    assert place.running() == [mine.pid]


def test_a_program_is_found_by_the_position_of_its_path(place: Place) -> None:
    path = str(place.folder / "node.py")
    place.prepare(SLEEP)
    supervisor = place.supervise()
    place.begin(["sh", "-c", "sleep 600; :", "sh", "-I", "-S", path], os.environ)
    wait_for(lambda: procfs.running_program(path))
    assert procfs.running_program(path) == [supervisor.pid]
    assert procfs.running_program(f"{path}x") == []
    assert procfs.running_program(path[:-1]) == []


def test_only_the_topmost_matching_processes_are_found(place: Place) -> None:
    root = place.begin(
        ["sh", "-c", "RANK=0 sh -c 'sleep 600 & wait' & RANK=1 sh -c 'sleep 600 & wait' & wait"], os.environ
    )
    wait_for(lambda: len(procfs.descendants([root.pid])) == 4)
    found = procfs.find_below(root.pid, lambda pid: "RANK" in procfs.environment(pid))
    assert sorted(procfs.environment(pid)["RANK"] for pid in found) == ["0", "1"]
    assert procfs.find_below(root.pid, lambda _: True) == [root.pid]
    for pid in procfs.descendants([root.pid]):
        os.kill(pid, signal.SIGKILL)


def test_the_description_of_a_process_is_short(place: Place) -> None:
    child = place.begin(["sleep", "600"], os.environ)
    assert (
        wait_for(lambda: "sleep" in procfs.describe(child.pid) and procfs.describe(child.pid))
        == f"{child.pid} (sleep 600)"
    )
    long = place.begin(python("import time; time.sleep(600)", "x" * 500), os.environ)
    wait_for(lambda: "time.sleep" in procfs.describe(long.pid))
    assert len(procfs.describe(long.pid)) <= 82
    assert procfs.describe(NO_PID) == f"{NO_PID} (ended)"


def test_this_boot_has_an_id() -> None:
    assert len(procfs.boot_id()) == 36
    assert procfs.boot_id() == procfs.boot_id()

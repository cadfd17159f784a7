"""Ending all processes of a job on a node, and knowing that none is left: by control groups, and by searching /proc."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.remote.place import Place, python, wait_for, without_groups
from torchfab.remote import job_files, procfs
from torchfab.remote.host import cgroup
from torchfab.remote.job import containment, process_search, stop

# A daemon in a session of its own, without a parent of the job, without an environment and without an open file.
DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid()));"
        code += "os.closerange(0, 64); time.sleep(600)"
        os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", code, sys.argv[1]], {})
    os._exit(0)
os.wait()
print("ready", flush=True)
time.sleep(600)
"""
# Each process forks and exits within a few milliseconds, in a session of its own, without the job's environment.
CHAIN = """
import os, sys, time
if sys.argv[2:]:
    while True:
        if os.fork():
            os._exit(0)
        os.setsid()
        with open(sys.argv[1], "w") as file:
            file.write(str(os.getpid()))
        time.sleep(float(sys.argv[2]))
if os.fork() == 0:
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", sys.orig_argv[4], sys.argv[1], PAUSE], {})
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture(params=["cgroup", "proc"])
def under(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What runs the supervisor: with control groups, and without."""
    if request.param == "proc":
        return without_groups()
    if not cgroup.own_folders() or not os.access(cgroup.own_folders()[0], os.W_OK):
        pytest.skip("this user may make no control group")
    return ()


def supervised(place: Place, under: tuple[str, ...], argv: tuple[str, ...], **spec: Any) -> subprocess.Popen[bytes]:
    place.prepare(argv, **spec)
    supervisor = place.supervise(under=under)
    log = place.folder / "agent" / job_files.OUTPUT
    wait_for(lambda: log.exists() and "ready" in log.read_text())
    wait_for(lambda: place.read(place.folder / "agent", job_files.STARTED))
    return supervisor


def stopped(place: Place, grace_s: float = 0.3) -> dict[str, Any]:
    return stop.stop(str(place.folder), place.job_id, 0, "none", grace_s)


def expected(under: tuple[str, ...]) -> str:
    return "proc" if under or not cgroup.own_folders() else "cgroup"


def written(path: Path) -> int:
    return int(wait_for(lambda: path.exists() and path.read_text()))


@pytest.mark.parametrize("supervisor_lives", [True, False])
def test_a_daemon_without_environment_is_ended(
    place: Place, tmp_path: Path, under: tuple[str, ...], supervisor_lives: bool
) -> None:
    supervisor = supervised(place, under, python(DAEMON, str(tmp_path / "pid")))
    daemon = written(tmp_path / "pid")
    if not supervisor_lives:
        supervisor.kill()
        supervisor.wait()
    report = stopped(place)
    assert (report["left"], report["proof"]) == ([], expected(under))
    assert not procfs.is_running(daemon)
    assert containment.groups(str(place.folder)) == []


@pytest.mark.parametrize("pause", ["0.004", "0"])
@pytest.mark.parametrize("supervisor_lives", [True, False])
def test_a_chain_of_short_processes_is_ended(
    place: Place, tmp_path: Path, under: tuple[str, ...], supervisor_lives: bool, pause: str
) -> None:
    link = tmp_path / "link"
    supervisor = supervised(place, under, python(CHAIN.replace("PAUSE", repr(pause)), str(link)))
    written(link)
    if not supervisor_lives:
        supervisor.kill()
        supervisor.wait()
    report = stopped(place)
    before = link.stat().st_mtime_ns
    time.sleep(0.2)
    assert link.stat().st_mtime_ns == before
    assert (report["left"], report["proof"]) == ([], expected(under))


def test_a_search_sees_a_chain_that_it_may_not_end(place: Place, tmp_path: Path) -> None:
    link = tmp_path / "link"
    supervised(place, without_groups(), python(CHAIN.replace("PAUSE", "'0.002'"), str(link)))
    written(link)
    found = [place.running() for _ in range(10)]
    assert all(found)


# Its main thread ends; another one runs on. The environment of the job is gone.
LEADERLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
print("ready", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.mark.parametrize("supervisor_lives", [True, False])
def test_a_process_whose_main_thread_has_ended_is_ended(
    place: Place, under: tuple[str, ...], supervisor_lives: bool
) -> None:
    supervisor = supervised(place, under, ("env", "-i", *python(LEADERLESS)))
    pid = place.read(place.folder / "agent", job_files.STARTED)["pid"]
    wait_for(lambda: procfs.stat_fields(pid)[:1] == ["Z"])
    if not supervisor_lives:
        supervisor.kill()
        supervisor.wait()
    report = stopped(place)
    assert (report["left"], report["proof"]) == ([], expected(under))
    assert not procfs.is_running(pid)


def test_without_a_group_nothing_is_claimed_of_the_kernel(place: Place) -> None:
    supervisor = supervised(place, (), python("import time; print('ready', flush=True); time.sleep(600)"))
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()
    group = containment.groups(str(place.folder))
    os.unlink(place.folder / "agent" / job_files.CGROUP)
    assert stopped(place)["proof"] == "proc"
    assert all(each.remove() for each in group)


def test_an_unseen_hierarchy_proves_nothing(place: Place) -> None:
    place.prepare(python("pass"))
    job_files.write_json(str(place.folder / "agent" / job_files.STARTED), {"time": 0.0})
    for record, proof in (
        ({"path": "/no/such/hierarchy/torchfab-x", "removed": False}, False),
        ({"path": "/no/such/hierarchy/torchfab-x", "removed": True}, True),
        ({"path": "", "removed": False}, False),
    ):
        job_files.write_json(str(place.folder / "agent" / job_files.CGROUP), record)
        assert containment.is_proof(str(place.folder)) is proof


def test_stop_counts_processes_that_only_the_mark_shows(place: Place) -> None:
    supervised(place, without_groups(), ("env", "-i", "sh", "-c", "echo ready; sleep 600"))
    assert len(place.running()) == 2
    assert not any(procfs.JOB_ID in procfs.environment(pid) for pid in place.running())
    assert process_search.job_processes(place.job_id, 1) == []
    os.kill(place.read(place.folder / "agent", job_files.STARTED)["pid"], signal.SIGKILL)

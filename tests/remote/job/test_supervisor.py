"""The supervisor as a real process, without tmux: start, watch, end, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import HOSTILE
from tests.remote.place import PYTHON, Place, python, wait_for
from torchfab.remote import job_files, procfs
from torchfab.remote.job import status
from torchfab.remote.job import stop as node_stop

NOBODY = 65534
# Each of these prints a line when it is ready for signals.
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)
# Waits for signals. Python loses none this way; one that comes just before a long sleep is handled after it.
IDLE = "[time.sleep(0.05) for _ in range(12_000)]"
# Leaves a grandchild in another session that ignores TERM, then runs its argument.
ESCAPING = """
import os, signal, sys, time
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(write, b"x")
        time.sleep(600)
    os._exit(0)
os.wait()
os.read(read, 1)
print("ready", flush=True)
exec(sys.argv[1])
"""


def output(place: Place, name: str = "agent") -> str:
    path = place.folder / name / job_files.OUTPUT
    return path.read_text() if path.exists() else ""


def supervised(place: Place, *argv: str, **spec: Any) -> tuple[subprocess.Popen[bytes], Path]:
    """Start the supervisor of a process that prints a line when it is ready; return both once it is."""
    folder = place.prepare(argv, **spec)
    supervisor = place.supervise()
    wait_for(lambda: "ready" in output(place))
    return supervisor, folder


def ended(place: Place, supervisor: subprocess.Popen[bytes]) -> tuple[int, dict[str, Any]]:
    """Wait for the supervisor's end; check that nothing is left; return its exit code and its record."""
    code = supervisor.wait(60)
    assert place.running() == []
    return code, place.read(place.folder / "agent", job_files.EXIT)


# ---- the end, written down


@pytest.mark.parametrize(
    ("how", "code", "name", "returned"),
    [
        ("exit 0", 0, None, 0),
        ("exit 7", 7, None, 7),
        ("exit 255", 255, None, 255),
        ("kill -KILL $$", -9, "SIGKILL", 137),
        ("kill -ABRT $$", -6, "SIGABRT", 134),
    ],
)
def test_the_end_of_a_process_is_recorded(place: Place, how: str, code: int, name: str | None, returned: int) -> None:
    before = time.time()
    got, record = place.run(["sh", "-c", how])
    assert got == returned
    assert before <= record.pop("time") <= time.time()
    assert record.pop("clock")[0] == procfs.boot_id()
    assert record == {"code": code, "signal": name, "asked": None, "warned": None, "killed": [], "left": []}


def test_the_start_of_a_process_is_recorded(place: Place) -> None:
    supervisor, folder = supervised(
        place, *python("import os, time; print('ready', os.getpid(), flush=True); time.sleep(600)")
    )
    record = wait_for(lambda: place.read(folder, job_files.STARTED))
    pid = int(output(place).split()[1])
    assert record == {
        "pid": pid,
        "start_time": procfs.start_time(pid),
        "supervisor_pid": supervisor.pid,
        "supervisor_start_time": procfs.start_time(supervisor.pid),
        "boot_id": procfs.boot_id(),
        "time": record["time"],
    }
    assert os.getsid(pid) == pid, "it has a session of its own"


def test_a_failed_start_is_recorded(place: Place) -> None:
    code, record = place.run(["/no/such/python", "train.py"])
    assert code == 127
    assert record["error"] == "cannot start /no/such/python: No such file or directory"
    assert record["code"] is None
    assert place.read(place.folder / "agent", job_files.STARTED) is None


def test_a_program_that_is_not_executable_is_recorded(place: Place, tmp_path: Path) -> None:
    (tmp_path / "program").write_text("")
    code, record = place.run([str(tmp_path / "program")])
    assert (code, record["error"]) == (127, f"cannot start {tmp_path / 'program'}: Permission denied")


def test_a_missing_working_directory_is_named(place: Place) -> None:
    code, record = place.run(["sh", "-c", "exit 0"], cwd="/no/such/folder")
    assert (code, record["error"]) == (127, "cannot start sh in /no/such/folder: No such file or directory")


def test_an_argument_too_long_for_the_kernel_is_recorded(place: Place) -> None:
    code, record = place.run(["sh", "-c", "exit 0", "x" * 200_000])
    assert (code, record["error"]) == (127, "cannot start sh: Argument list too long")


# ---- what the process gets


def test_argv_environment_and_folder_are_those_of_the_spec(place: Place, tmp_path: Path) -> None:
    env = {f"V_{number}": text for number, text in enumerate(HOSTILE.values())}
    secrets = {"HF_TOKEN": "hunter2'\n$HOME"}
    program = (
        "import json, os, sys\n"
        "raw = open('/proc/self/environ', 'rb').read().decode('utf-8', 'surrogateescape')\n"
        "json.dump([sys.argv[1:], raw, os.getcwd(), os.isatty(0)], open('/proc/self/fd/1', 'w'))"
    )
    code, _ = place.run(python(program, *HOSTILE.values()), env=env, secrets=secrets, cwd=str(tmp_path))
    assert code == 0
    argv, raw, cwd, terminal = json.loads(output(place))
    assert argv == list(HOSTILE.values())
    assert dict(word.split("=", 1) for word in raw.split("\0")[:-1]) == {
        "PATH": os.environ["PATH"],
        **place.marks,
        **env,
        **secrets,
    }
    assert (cwd, terminal) == (str(tmp_path), False)


def test_secrets_are_removed_once_read_and_stay_in_no_file(place: Place) -> None:
    _, folder = supervised(
        place, *python(f"import time; print('ready', flush=True); {IDLE}"), secrets={"HF_TOKEN": "hunter2"}
    )
    pid = wait_for(lambda: place.read(folder, job_files.STARTED))["pid"]
    assert procfs.environment(pid)["HF_TOKEN"] == "hunter2"
    assert not (folder / job_files.SECRETS).exists()
    assert "hunter2" not in "".join(
        (folder / name).read_text() for name in (job_files.SPEC, job_files.STARTED, job_files.OUTPUT)
    )


def test_secrets_are_removed_when_the_start_fails(place: Place) -> None:
    place.run(["/no/such/program"], secrets={"HF_TOKEN": "hunter2"})
    assert not (place.folder / "agent" / job_files.SECRETS).exists()


def test_output_goes_to_a_private_log_and_stdin_is_empty(place: Place) -> None:
    code, _ = place.run(["sh", "-c", "cat; echo out; echo err >&2"])
    log = place.folder / "agent" / job_files.OUTPUT
    assert (code, log.read_text(), stat.S_IMODE(log.stat().st_mode)) == (0, "out\nerr\n", 0o600)


def test_the_growth_of_the_log_is_in_the_timeline(place: Place) -> None:
    place.run(["sh", "-c", "echo out"])
    when, size, path = (place.folder / "agent" / job_files.TIMELINE).read_text().split()
    assert (size, path) == ("4", job_files.OUTPUT)
    assert abs(float(when) - time.time()) < 60


# ---- nothing is left behind


def test_double_forked_processes_in_other_sessions_are_ended(place: Place) -> None:
    code, record = place.run(python(ESCAPING, "sys.exit(7)"), grace_s=0.2)
    assert code == 7
    assert (record["code"], len(record["left"]), len(record["killed"])) == (7, 1, 1)
    assert place.running() == []


def test_leftovers_that_handle_term_are_not_killed(place: Place) -> None:
    code, record = place.run(["sh", "-c", "setsid sleep 600 & sleep 0.05; exit 3"])
    assert (code, len(record["left"]), record["killed"]) == (3, 1, [])
    assert place.running() == []


def test_workers_in_other_sessions_do_not_outlive_a_killed_agent(place: Place) -> None:
    agent = (
        "import subprocess, sys, time\n"
        "for n in range(3): subprocess.Popen(sys.argv[1:], start_new_session=True)\n"
        "time.sleep(600)"
    )
    folder = place.prepare(python(agent, *python(STUBBORN)), grace_s=0.2)
    supervisor = place.supervise()
    wait_for(lambda: output(place).count("ready") == 3)
    os.kill(place.read(folder, job_files.STARTED)["pid"], signal.SIGKILL)
    code, record = ended(place, supervisor)
    assert (code, record["signal"], len(record["left"]), len(record["killed"])) == (137, "SIGKILL", 3, 3)


def test_a_worker_that_ignores_term_is_killed_after_the_grace_period(place: Place) -> None:
    supervisor, _ = supervised(place, *python(STUBBORN), grace_s=0.3)
    begun = time.monotonic()
    supervisor.terminate()
    code, record = ended(place, supervisor)
    assert (code, record["code"], record["signal"], record["asked"]) == (137, -9, "SIGKILL", "SIGTERM")
    assert len(record["killed"]) == 1
    assert 0.25 < time.monotonic() - begun < 9  # the default grace period is 10 s


def test_the_grace_period_of_a_stop_replaces_that_of_the_launch(place: Place) -> None:
    supervisor, _ = supervised(place, *python(STUBBORN), grace_s=500.0)
    job_files.write_json(str(place.folder / job_files.STOP), {"time": time.time(), "grace_s": 0.1})
    supervisor.terminate()
    assert ended(place, supervisor)[0] == 137


def test_a_worker_has_the_grace_period_to_end_by_itself(place: Place) -> None:
    polite = (
        "import signal, sys, time\n"
        "def end(*_): time.sleep(0.3); print('saved', flush=True); sys.exit(5)\n"
        f"signal.signal(signal.SIGTERM, end); print('ready', flush=True); {IDLE}"
    )
    supervisor, _ = supervised(place, *python(polite))
    supervisor.terminate()
    code, record = ended(place, supervisor)
    assert (code, record["code"], record["asked"], record["killed"]) == (5, 5, "SIGTERM", [])
    assert output(place) == "ready\nsaved\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_signals_that_request_the_end_are_forwarded(place: Place, number: signal.Signals) -> None:
    telling = (
        "import signal, sys, time\n"
        "for n in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT): signal.signal(n, lambda n, _: sys.exit(n))\n"
        f"print('ready', flush=True); {IDLE}"
    )
    place.prepare(python(telling))
    supervisor = place.supervise(env={"TMUX": f"/a/socket,{os.getpid()},0"})  # HUP of a tmux that lives is meant
    wait_for(lambda: "ready" in output(place))
    supervisor.send_signal(number)
    code, record = ended(place, supervisor)
    assert (code, record["asked"]) == (number, number.name)


def test_the_training_continues_when_tmux_itself_is_killed(place: Place) -> None:
    gone = place.begin(["true"], os.environ)
    gone.wait()
    place.prepare(["sh", "-c", "echo ready; sleep 0.5; exit 3"])
    supervisor = place.supervise(env={"TMUX": f"/a/socket,{gone.pid},0"})
    wait_for(lambda: "ready" in output(place))
    supervisor.send_signal(signal.SIGHUP)
    code, record = ended(place, supervisor)
    assert (code, record["asked"]) == (3, None)


def test_user_signals_reach_the_process_and_end_nothing(place: Place) -> None:
    telling = (
        "import signal, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('saved', flush=True))\n"
        f"print('ready', flush=True); {IDLE}"
    )
    supervisor, _ = supervised(place, *python(telling))
    supervisor.send_signal(signal.SIGUSR1)
    wait_for(lambda: output(place) == "ready\nsaved\n")
    assert supervisor.poll() is None


def test_a_process_gets_term_when_its_supervisor_is_killed(place: Place) -> None:
    supervisor, _ = supervised(place, "sh", "-c", "echo ready; exec sleep 600")
    supervisor.kill()
    supervisor.wait()
    wait_for(lambda: place.running() == [])


# ---- ranks


def test_ranks_are_found_with_their_true_exit_codes(place: Place) -> None:
    # It reaps a rank some time after its end, as torchrun does, which polls every 0.1 s.
    agent = (
        "import os, subprocess, sys, time\n"
        "def start(rank, code):\n"
        "    env = {**os.environ, 'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': '2'}\n"
        "    return subprocess.Popen([*sys.argv[1:], '-c', code], env=env)\n"
        "first = start(0, 'import time; time.sleep(600)')\n"
        "second = start(1, 'import sys, time; time.sleep(0.4); sys.exit(7)')\n"
        "time.sleep(0.8); second.wait(); first.terminate(); time.sleep(0.4); first.wait(); sys.exit(1)"
    )
    code, record = place.run(python(agent, *PYTHON))
    ranks = place.read(place.folder / "agent", job_files.RANKS)
    assert (code, record["code"]) == (1, 1)
    assert [(each["rank"], each["local_rank"], each["world_size"], each["code"]) for each in ranks] == [
        (0, 0, 2, -15),
        (1, 1, 2, 7),
    ]
    assert all(each["started"] < each["ended"] <= record["time"] for each in ranks)
    assert ranks[1]["ended"] < ranks[0]["ended"]


def test_a_process_that_is_itself_a_rank_has_its_code_in_the_ranks(place: Place) -> None:
    env = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}
    place.run(["sh", "-c", "sleep 0.3; exit 7"], env=env, name="rank-3", rank=3)
    (rank,) = place.read(place.folder / "rank-3", job_files.RANKS)
    assert (rank["rank"], rank["local_rank"], rank["code"]) == (3, 1, 7)


# ---- processes that are hard to end

# Each process forks and exits within a millisecond.
CHAIN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    print("ready", flush=True)
    time.sleep(600)
while True:
    if os.fork():
        os._exit(0)
    with open(sys.argv[1], "w") as file:
        file.write(str(os.getpid()))
    time.sleep(0.0005)
"""


def test_a_chain_of_processes_that_fork_and_exit_is_ended(place: Place, tmp_path: Path) -> None:
    link = tmp_path / "link"
    supervisor, _ = supervised(place, *python(CHAIN, str(link)), grace_s=0.5)
    wait_for(link.exists)
    supervisor.send_signal(signal.SIGTERM)
    supervisor.wait(30)
    before = link.read_text()
    time.sleep(0.3)
    assert link.read_text() == before


# Its main thread ends; another one runs on.
LEADERLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
print("ready", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_whose_main_thread_has_exited_is_found_and_ended(place: Place) -> None:
    process = place.begin(python(LEADERLESS), {**os.environ, **place.marks})
    wait_for(lambda: procfs.stat_fields(process.pid)[:1] == ["Z"])
    assert procfs.is_running(process.pid)
    assert place.running() == [process.pid]
    report = node_stop.stop(str(place.folder), place.job_id, 0, "none", 5.0)
    assert (report["asked"], report["left"]) == (1, [])
    assert process.wait(5) == -signal.SIGTERM


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a program run as another user")
@pytest.mark.skipif(not os.path.exists("/usr/bin/python3"), reason="no interpreter that every user may run")
def test_a_process_of_another_user_is_reported_and_not_awaited() -> None:
    base = tempfile.mkdtemp(dir="/var/tmp")
    try:
        os.chmod(base, 0o755)
        become_root = shutil.copy(shutil.which("setpriv") or "setpriv", base)
        os.chmod(become_root, 0o4755)
        place = Place(Path(base) / "job" / "node-0", "foreign")
        place.prepare(["sh", "-c", f"{become_root} --reuid 0 sleep 600 & sleep 0.5; exit 0"], grace_s=0.5)
        for path in [Path(base) / "job", *(Path(base) / "job").rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
        # That user may not reach the interpreter of these tests.
        program = ["/usr/bin/python3", "-I", "-S", str(place.folder / job_files.BUNDLE), "supervise", "agent"]
        done = subprocess.run(program, env={"PATH": os.defpath}, user=NOBODY, group=NOBODY, timeout=30, check=False)
        assert done.returncode == 0
        (foreign,) = place.read(place.folder / "agent", job_files.EXIT)["foreign"]
        assert re.fullmatch(r"\d+ \(sleep 600\) of user root", foreign["text"])
        assert status.status(str(place.folder), "foreign", 0)["left"] == [foreign["text"]]
        os.kill(foreign["pid"], signal.SIGKILL)
        wait_for(lambda: "left" not in status.status(str(place.folder), "foreign", 0))
    finally:
        shutil.rmtree(base)

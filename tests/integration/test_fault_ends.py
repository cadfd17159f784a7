"""The fault matrix, ends: ranks that save for long; processes that hide, change their user or leave files behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import uuid
from pathlib import Path

from tests.integration import launcher_contract, test_graceful_end
from tests.integration.fab import Fab, eventually
from tests.integration.faults import Matrix
from tests.integration.faults_injected import other_disk
from tests.integration.jobs import gpufile, host_line, ok, status_of, two
from tests.support import absent, require
from torchfab.remote import procfs

SAVE_S = 33  # longer than torchrun's own 30 s


def test_ranks_with_loaders_save_for_longer_than_torchruns_30_seconds(fab: Fab, matrix: Matrix) -> None:
    faults = (
        "ranks that save for longer than torchrun's 30 s",
        "data loaders while ranks save",
        "a handler that leaves at a second SIGTERM",
    )
    rows = [matrix.row(fault, fab, "saver") for fault in faults]
    out = test_graceful_end.launch(fab, "launch-per-node", test_graceful_end.SAVES, str(SAVE_S))
    stopped = ok(fab("stop", "saver", "--grace", "60", timeout_s=90))
    saved = test_graceful_end.saved(out)
    assert re.search(r"4 ranks ended by themselves \([345]\d s\)", stopped.stdout), stopped
    for row in rows:
        row.output_has(stopped.stdout, "4 ranks ended by themselves")
        row.nothing_left()
        row.without(2)
        row.saved(saved, 4)
    assert {each["terms"] for each in saved.values()} == {1}, saved


# By rank: 0 starts a daemon without a parent, a session or an environment of the job, and without an open file; 1
# starts processes each of which forks and exits within 4 ms; 2 goes on in a thread when its main thread has ended.
HIDE = """
import ctypes, os, signal, sys, threading, time
rank, out = int(os.environ["RANK"]), sys.argv[1]
daemon = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); os.closerange(0, 64); time.sleep(600)"
chain = '''
import os, sys, time
while True:
    if os.fork():
        os._exit(0)
    os.setsid()
    with open(sys.argv[1], "w") as file:
        file.write(str(os.getpid()))
    time.sleep(0.004)
'''
def detach(code):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", code, f"{out}/{rank}"], {})
        os._exit(0)
    os.wait()
if rank == 2:
    threading.Thread(target=time.sleep, args=(600,)).start()
    open(f"{out}/{rank}", "w").write(str(os.getpid()))
    ctypes.CDLL(None).pthread_exit(None)
detach(daemon if rank == 0 else chain)
time.sleep(600)
"""


def test_processes_that_hide_are_ended(fab: Fab, matrix: Matrix) -> None:
    faults = (
        "a daemon without parent, session and environment; kill -9 of its supervisor",
        "a chain of processes that fork and exit within 4 ms",
        "a process whose main thread has ended",
    )
    rows = [matrix.row(fault, fab, "hides") for fault in faults]
    fab.write("hide.py", HIDE)
    out = launcher_contract.out_dir(fab, "hides")
    hosts = "".join(f"{host_line(fab, index)}\n" for index in (0, 1, 1))
    words = ("launch-per-gpu", "--gpufile", str(fab.write("three", hosts)), "--name", "hides", "--grace", "1")
    ok(fab(*words, "--", "hide.py", str(out)))
    pids = [lambda rank=rank: (out / str(rank)).read_text() for rank in range(3)]
    assert eventually(lambda: all((out / str(rank)).exists() and pids[rank]() for rank in range(3)), 30)
    daemon, threads = int(pids[0]()), int(pids[2]())
    os.kill(supervisor_of(fab, 0), signal.SIGKILL)
    stopped = ok(fab("stop", "hides"))
    chain = (out / "1").stat().st_mtime_ns
    assert not procfs.is_running(daemon), stopped
    assert not procfs.is_running(threads), stopped
    assert eventually(lambda: True, 0.2)
    assert (out / "1").stat().st_mtime_ns == chain, stopped
    for row in rows:
        row.output_has(stopped.stdout, "job hides: ")
        row.nothing_left()
        row.without(2, 3)


def supervisor_of(fab: Fab, index: int) -> int:
    """Return the pid of the supervisor on a node."""
    mark = f"/node-{index}/"
    return next(pid for pid, command in fab.processes().items() if "supervise" in command and mark in command)


def test_a_process_of_another_user_is_named_and_the_job_ends(loopback_fab: Fab, matrix: Matrix) -> None:
    if os.geteuid() != 0:
        absent("only root can make a program that runs as another user")
    fab = loopback_fab
    row = matrix.row("a child of another user that outlives its rank", fab)
    row.without(2, 3)
    become_root = shutil.copy(require("setpriv"), fab.base)
    os.chown(become_root, 0, 0)
    os.chmod(become_root, 0o4755)
    seconds = str(600 + os.getpid() / 1e6)
    argv = [become_root, "--reuid", "0", "sleep", seconds]
    fab.write("child.py", f"import subprocess, time\nsubprocess.Popen({argv!r})\ntime.sleep(2)\n")
    ok(fab(*two(fab, "--name", "x", "--grace", "1", "--", "child.py")))
    try:
        assert fab("wait", "x").rc == 0
        stopped = fab("stop", "x")
        assert stopped.rc == 1, stopped
        row.output_has(stopped.stdout, "of user root")
    finally:
        for pid in pids_of(seconds):
            os.kill(pid, signal.SIGKILL)
    ok(fab("stop", "x"))
    row.nothing_left(within_s=10)


def pids_of(word: str) -> list[int]:
    """Return the processes that have a word in their command line."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if word in procfs.command_line(pid)]


LEAVES = """
import os, sys, tempfile, time
rank = os.environ["RANK"]
for name in (f"torch_{os.getpid()}_1_0", f"sem.mp-{sys.argv[1]}{rank}", f"nccl-{sys.argv[1]}{rank}"):
    open(f"/dev/shm/{name}", "wb").write(b"x" * 1000)
open(f"{sys.argv[1]}.{rank}", "w").close()
time.sleep(600)
"""


def test_what_killed_ranks_leave_is_removed(fab: Fab, matrix: Matrix) -> None:
    row = matrix.row("shared memory and semaphores of killed ranks", fab)
    row.without(2, 3)
    fab.write("leaves.py", LEAVES)
    mark = uuid.uuid4().hex[:6]
    with other_disk(fab.cluster.node(0), Path("/dev/shm"), "mode=1777"):  # otherwise another job may remove them
        ok(fab("launch-per-gpu", "--gpufile", gpufile(fab, 0, 0), "--name", "x", "--", "leaves.py", mark))
        assert eventually(lambda: len(list(fab.workdir.glob(f"{mark}.*"))) == 2, 30)
        ranks = [rank["pid"] for node in status_of(fab, "x")["nodes"] for rank in node["ranks"]]
        for pid in (supervisor_of(fab, 0), *ranks):
            os.kill(pid, signal.SIGKILL)
        stopped = ok(fab("stop", "x"))
        left = list(Path(f"/proc/{fab.cluster.node(0).sshd_pid}/root/dev/shm").iterdir())
    assert not left, stopped
    row.output_has(stopped.stdout, "removed what its processes had left: ")
    row.nothing_left()

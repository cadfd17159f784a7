"""`fab why`: each cause made to happen for real on two hosts, with scripts without torch."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fab import Done, Fab, eventually, read
from tests.integration.faults_injected import other_disk, taken_port
from tests.integration.jobs import ok, status_of, two
from tests.remote.place import memory_group, removed

# Rank 1 does what its argument says; rank 0 runs until it sees that this has happened, and exits with 0.
FATE = """
import os, sys, time
out, how = os.environ["OUT"], sys.argv[1]
def go_on():
    while not os.path.exists(f"{out}/over"):
        time.sleep(0.05)
def load(batch):
    raise ValueError(f"batch {batch} is bad")
def run():
    if how == "exit": sys.exit(7)
    if how == "raise": load(17)
    if how == "import": import only_here
    if how == "memory": import resource; resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28)); bytearray(2**29)
    if how == "read-only": open(f"{out}/disk/file", "w")
    if how == "disk": open(f"{out}/disk/file", "wb").write(bytes(2**23))
    if how == "port": import socket; socket.create_server(("", int(sys.argv[2])))
    if how == "oom":
        open(f"{sys.argv[2]}/cgroup.procs", "w").write(str(os.getpid()))
        kept = [bytearray(os.urandom(2**20)) for _ in range(512)]
    if how == "crash": import ctypes; ctypes.string_at(0)
    go_on()
print("step 1", flush=True)
open(f"{out}/{os.environ['RANK']}", "w").close()
if os.environ["RANK"] == "0" and how != "import":
    go_on()
else:
    time.sleep(1.5 if how == "import" and os.environ["RANK"] == "0" else 0.2)
    run()
"""


class Fate:
    """Launch a script that ends as its argument says, and run `fab why`."""

    def __init__(self, fab: Fab) -> None:
        self.fab = fab
        fab.write("fate.py", FATE)
        self.out = fab.workdir / "out"
        self.out.mkdir()

    def begin(self, *words: str) -> None:
        """Launch, and wait until both ranks run."""
        ok(self.fab(*two(self.fab, "--name", "x", "--env", f"OUT={self.out}", "--", "fate.py", *words)))
        assert eventually(lambda: (self.out / "0").exists() and (self.out / "1").exists(), 60)

    def end(self) -> None:
        """Release the other rank, and wait for the end of the job."""
        (self.out / "over").touch()
        assert eventually(lambda: all(map(self.has_ended, (0, 1))), 60)

    def has_ended(self, node_rank: int) -> bool:
        """Return whether a node's process has recorded its end and is gone; `fab status` would take a second."""
        exits = self.fab.node_dir.glob(f"jobs/*/node-{node_rank}/*/exit.json")
        done = any("cleaning" not in json.loads(path.read_text()) for path in exits)
        return done or not all_of_node(self, node_rank)

    def why(self, code: int = 0) -> dict[str, Any]:
        """Return the answer of `fab why --json`."""
        done = self.fab("why", "x", "--json")
        assert done.rc == code, done
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def pid(self, rank: int) -> int:
        return int(status_of(self.fab, "x")["nodes"][rank]["ranks"][0]["pid"])

    def after(self, *words: str) -> dict[str, Any]:
        """Launch, wait for the end, and return the answer of `fab why`."""
        self.begin(*words)
        self.end()
        return self.why()


@pytest.fixture
def fate(fab: Fab) -> Fate:
    return Fate(fab)


def cause_of(answer: dict[str, Any]) -> tuple[str, str]:
    return answer["cause"]["kind"], answer["cause"]["name"]


def where(answer: dict[str, Any]) -> tuple[str, int | None, int | None]:
    first = answer["first"]
    return first["host"], first["rank"], first["code"]


def test_why_reports_an_exit_code_on_one_page(fate: Fate) -> None:
    fate.begin("exit")
    fate.end()
    page = fate.fab("why")
    assert page.rc == 0, page
    assert page.stderr == "job x (the latest)\n"
    lines = page.stdout.splitlines()
    assert lines[0] == "job x failed: the script ended itself with exit code 7", page
    assert lines[1].startswith("fix    "), page
    assert lines[2].startswith("first  rank 1 on node2, "), page
    assert "kind   the script itself failed" in lines
    assert "its last lines (" in page.stdout, page
    assert "\n  step 1\n" in page.stdout, page
    status, waited = fate.fab("status", "x"), fate.fab("wait", "x")
    assert "(the script ended itself with exit code 7); fab why x | fab logs x --rank 1\n" in status.stdout, status
    assert "exit code 7); fab why x | fab logs x --rank 1\n" in waited.stderr, waited


def test_an_exception_is_reported_with_its_traceback(fate: Fate) -> None:
    answer = fate.after("raise")
    assert (cause_of(answer), where(answer)) == (("script", "exception"), ("node2", 1, 1)), answer
    assert answer["cause"]["words"] == "the script raised ValueError: batch 17 is bad"
    assert ", in load\n" in answer["first"]["traceback"]
    assert len(answer["fingerprint"]) == 12
    assert answer["consequences"] == []


def test_a_sigkill_from_outside_is_reported_as_killed(fate: Fate) -> None:
    fate.begin("wait")
    os.kill(fate.pid(1), signal.SIGKILL)
    fate.end()
    answer = fate.why()
    assert (cause_of(answer), where(answer)) == (("killed", "killed"), ("node2", 1, -9)), answer
    assert "SIGKILL came from outside" in answer["cause"]["words"]


def test_a_crash_in_native_code_is_a_script_error(fate: Fate) -> None:
    answer = fate.after("crash")
    assert (cause_of(answer), where(answer)) == (("script", "crash"), ("node2", 1, -11)), answer


def test_a_memory_limit_is_reported_as_memory(fate: Fate) -> None:
    answer = fate.after("memory")
    assert (cause_of(answer), where(answer)) == (("memory", "host-memory"), ("node2", 1, 1)), answer
    assert "MemoryError" in answer["cause"]["words"]


def test_an_import_that_fails_on_one_node_names_the_node(fate: Fate) -> None:
    folder = fate.fab.workdir / "lib"
    folder.mkdir()
    (folder / "only_here.py").write_text("")
    with other_disk(fate.fab.cluster.node(1), folder):
        ok(fate.fab(*two(fate.fab, "--name", "x", "--env", f"OUT={fate.out}", "--env", f"PYTHONPATH={folder}", "--",
                         "fate.py", "import")))  # fmt: skip
        assert eventually(lambda: (fate.out / "0").exists() and (fate.out / "1").exists(), 60)
        assert eventually(lambda: fate.has_ended(1), 60)
    fate.end()
    answer = fate.why()
    assert (cause_of(answer), where(answer)) == (("node", "import-error-of-node"), ("node2", 1, 1)), answer
    assert "No module named 'only_here', on node2 only: node1 got further" in answer["cause"]["words"]
    assert answer["bad_nodes"] == ["node2"]


def test_an_import_that_fails_on_all_nodes_is_a_script_error(fate: Fate) -> None:
    fate.begin("import")
    assert eventually(lambda: all(map(fate.has_ended, (0, 1))), 60)
    answer = fate.why()
    assert (cause_of(answer), answer["bad_nodes"]) == (("script", "import-error"), []), answer


def test_a_read_only_file_system_is_a_fault_of_the_node(fate: Fate) -> None:
    (fate.out / "disk").mkdir()
    with other_disk(fate.fab.cluster.node(1), fate.out / "disk", "ro"):
        answer = fate.after("read-only")
    assert (cause_of(answer), answer["bad_nodes"]) == (("node", "filesystem-sick"), ["node2"]), answer


def test_a_full_disk_is_named(fate: Fate) -> None:
    (fate.out / "disk").mkdir()
    with other_disk(fate.fab.cluster.node(1), fate.out / "disk", "size=1m"):
        answer = fate.after("disk")
    assert (cause_of(answer), answer["bad_nodes"]) == (("node", "disk-full"), ["node2"]), answer
    assert "No space left on device" in answer["cause"]["words"]


def test_a_taken_port_is_an_error_with_a_fix(fate: Fate) -> None:
    with taken_port(fate.fab.cluster.node(1), 5001):
        answer = fate.after("port", "5001")
    assert (cause_of(answer), where(answer)) == (("network", "address-in-use"), ("node2", 1, 1)), answer
    assert "ss -ltnp" in answer["cause"]["fix"]


def test_the_oom_killer_is_recognised(fate: Fate) -> None:
    group = memory_group("torchfab-why")
    try:
        answer = fate.after("oom", str(group))
    finally:
        assert eventually(lambda: removed(group), 60)
    assert (cause_of(answer), where(answer)) == (("memory", "host-memory"), ("node2", 1, -9)), answer
    assert "OOM killer" in answer["cause"]["words"]


def all_of_node(fate: Fate, rank: int) -> list[int]:
    mark = f"TORCHFAB_NODE_RANK={rank}\0".encode()
    found = []
    for pid, words in fate.fab.processes().items():
        marked = mark in read(Path(f"/proc/{pid}/environ"))
        if marked or f"node-{rank}/" in words:
            found.append(pid)
    return found


def test_a_node_whose_processes_were_all_killed_is_lost(fate: Fate) -> None:
    fate.begin("wait")
    pids = all_of_node(fate, 1)
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    fate.end()
    answer = fate.why()
    assert cause_of(answer) == ("killed", "supervisor-killed"), answer
    assert where(answer) == ("node2", 1, None)
    assert answer["cause"]["words"].startswith("the supervisor of rank-1 was killed"), answer
    shutil.rmtree(next(fate.fab.node_dir.glob("jobs/*/node-1")))
    answer = fate.why()
    assert (cause_of(answer), answer["bad_nodes"]) == (("node", "node-lost"), ["node2"]), answer


def test_a_killed_supervisor_is_reported(fate: Fate) -> None:
    fate.begin("wait")
    pid = next(pid for pid, words in fate.fab.processes().items() if "supervise rank-1" in words)
    os.kill(pid, signal.SIGKILL)
    fate.end()
    answer = fate.why()
    assert (cause_of(answer), where(answer)) == (("killed", "supervisor-killed"), ("node2", 1, None)), answer


def test_a_restarted_node_is_detected_by_its_boot_id(fate: Fate) -> None:
    fate.begin("wait")
    for pid in all_of_node(fate, 1):
        os.kill(pid, signal.SIGKILL)
    started = next(fate.fab.node_dir.glob("jobs/*/node-1/*/started.json"))
    values = json.loads(started.read_text())
    started.write_text(json.dumps({**values, "boot_id": "another"}))
    fate.end()
    answer = fate.why()
    assert (cause_of(answer), answer["bad_nodes"]) == (("node", "node-rebooted"), ["node2"]), answer


def test_why_reports_running_stopped_and_succeeded_jobs(fate: Fate) -> None:
    fate.begin("wait")
    assert cause_of(fate.why()) == ("running", "running")
    os.kill(fate.pid(1), signal.SIGSTOP)
    answer = fate.why()
    assert answer["notes"] == ["rank 1 on node2 is stopped by a signal (SIGSTOP) or a debugger"], answer
    assert answer["first"] is None
    ok(fate.fab("stop", "x", "--grace", "0"))
    answer = fate.why()
    assert cause_of(answer) == ("stopped", "stopped"), answer
    assert answer["cause"]["words"] == "it was stopped with fab stop, from here"


def test_a_successful_job_has_no_first_failure(fate: Fate) -> None:
    answer = fate.after("wait")
    assert (cause_of(answer), answer["first"], answer["fingerprint"]) == (("succeeded", "succeeded"), None, ""), answer


def test_a_failed_rank_of_a_running_job_and_a_silent_node_are_reported(fate: Fate) -> None:
    fate.begin("raise")
    assert eventually(lambda: fate.has_ended(1), 60)
    answer = fate.why()
    assert (cause_of(answer), answer["state"]) == (("script", "exception"), "failed"), answer
    fate.fab.cluster.partition(0)
    try:
        done: Done = fate.fab("-t", "1", "why", "x")
    finally:
        fate.fab.cluster.heal(0)
    assert done.rc == 1, done
    assert "could not be asked:\n  node1: no answer from" in done.stdout, done
    assert "the script raised ValueError" in done.stdout, done

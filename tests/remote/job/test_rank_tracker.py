"""Finding the ranks below a process: real process trees."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.remote.place import PYTHON, python, wait_for
from torchfab.remote import job_files, procfs
from torchfab.remote.job.rank_tracker import RankTracker

# An agent with three ranks, each with a data loader that has the rank's environment. It reaps only on command.
AGENT = """
import os, subprocess, sys
for rank in (4, 5, 6):
    env = {"RANK": str(rank), "LOCAL_RANK": str(rank - 4), "WORLD_SIZE": "8", "TORCHELASTIC_RESTART_COUNT": "2"}
    body = "import subprocess, sys; loader = subprocess.Popen(['sleep', '600']); line = sys.stdin.readline()\\n"
    body += "loader.kill(); loader.wait(); sys.exit(int(line))"
    child = subprocess.Popen([*sys.argv[1:], "-c", body], env={**os.environ, **env}, stdin=subprocess.PIPE, text=True)
    globals()[f"child{rank}"] = child
    print(rank, child.pid, flush=True)
for line in sys.stdin:
    exec(line)
"""


class Agent:
    """The agent, the pids of its ranks, and a tracker over it."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            python(AGENT, *PYTHON), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout
        lines = [self.process.stdout.readline().split() for _ in range(3)]
        self.pids = {int(rank): int(pid) for rank, pid in lines}
        wait_for(lambda: len(procfs.descendants([self.process.pid])) == 6)
        everyone = [self.process.pid, *procfs.descendants([self.process.pid])]
        self.everyone = [(pid, procfs.start_time(pid)) for pid in everyone]
        self.tracker = RankTracker(str(folder), self.process.pid)

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def finish(self, rank: int, code: int) -> None:
        self.tell(f"child{rank}.stdin.write('{code}\\n'); child{rank}.stdin.flush()")

    def end(self) -> None:
        """Kill all of them, also loaders that lost their rank."""
        for pid, started in self.everyone:
            if procfs.is_alive(pid, started):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()
        for handle in self.tracker.pidfds:
            os.close(handle)

    def await_end(self) -> None:
        """Wait for a pidfd, as the supervisor does, and note that end."""
        poll = select.poll()
        for handle in self.tracker.pidfds:
            poll.register(handle, select.POLLIN)
        for handle, _ in poll.poll(10_000):
            self.tracker.on_pidfd(handle)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path)
    yield made
    made.end()


def codes(agent: Agent) -> dict[int, int | None]:
    return {rank["rank"]: rank["code"] for rank in agent.tracker.ranks}


def test_ranks_are_the_topmost_processes_with_rank_not_their_loaders(agent: Agent, tmp_path: Path) -> None:
    assert agent.tracker.find_new()
    assert agent.tracker.ranks == [
        {
            "rank": rank,
            "local_rank": rank - 4,
            "world_size": 8,
            "attempt": 2,
            "pid": pid,
            "start_time": procfs.start_time(pid),
            "started": agent.tracker.ranks[index]["started"],
            "ended": None,
            "code": None,
        }
        for index, (rank, pid) in enumerate(agent.pids.items())
    ]
    assert job_files.read_json(str(tmp_path / job_files.RANKS)) == agent.tracker.ranks
    assert agent.tracker.running() == list(agent.pids.values())


def test_a_second_search_finds_nothing_new(agent: Agent) -> None:
    agent.tracker.find_new()
    assert not agent.tracker.find_new()
    assert len(agent.tracker.ranks) == 3


def test_true_exit_codes_are_read_before_the_agent_reaps(agent: Agent, tmp_path: Path) -> None:
    agent.tracker.find_new()
    agent.finish(4, 0)
    agent.await_end()
    agent.finish(5, 7)
    agent.await_end()
    os.kill(agent.pids[6], signal.SIGKILL)
    agent.await_end()
    assert codes(agent) == {4: 0, 5: 7, 6: -9}
    assert agent.tracker.pidfds == {}
    assert agent.tracker.running() == []
    ends = [rank["ended"] for rank in job_files.read_json(str(tmp_path / job_files.RANKS))]
    assert ends == sorted(ends)
    assert time.time() - ends[0] < 60


def test_a_rank_without_a_pidfd_is_swept(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    def old_kernel(_: int) -> int:
        raise OSError

    monkeypatch.setattr(os, "pidfd_open", old_kernel)
    agent.tracker.find_new()
    assert agent.tracker.pidfds == {}
    agent.finish(5, 7)
    wait_for(lambda: procfs.exit_code_of_zombie(agent.pids[5]) == 7)
    agent.tracker.sweep()
    assert codes(agent) == {4: None, 5: 7, 6: None}


def test_a_rank_that_was_reaped_too_early_has_no_code(agent: Agent) -> None:
    agent.tracker.find_new()
    agent.finish(4, 3)
    agent.tell("child4.wait(); print('reaped', flush=True)")
    assert agent.process.stdout
    assert agent.process.stdout.readline() == "reaped\n"
    agent.await_end()
    (rank, *_) = agent.tracker.ranks
    assert (rank["code"], rank["ended"] is not None) == (None, True)


def test_the_code_of_a_rank_reaped_by_the_supervisor_is_set(agent: Agent, tmp_path: Path) -> None:
    agent.tracker.find_new()
    agent.tracker.set_code(agent.pids[5], -11)
    (rank,) = [each for each in job_files.read_json(str(tmp_path / job_files.RANKS)) if each["pid"] == agent.pids[5]]
    assert (rank["code"], rank["ended"] is not None) == (-11, True)


@pytest.mark.parametrize("text", ["", "-1", "x", "1.0", "²", "9" * 5000])
def test_a_rank_that_is_not_a_number_is_none(text: str, tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "600"], env={"PATH": os.environ["PATH"], "RANK": text})
    wait_for(lambda: procfs.environment(child.pid))
    tracker = RankTracker(str(tmp_path), child.pid)
    try:
        assert tracker.find_new()
        assert [rank["rank"] for rank in tracker.ranks] == [None]
    finally:
        child.kill()
        child.wait()
        for handle in tracker.pidfds:
            os.close(handle)


# A rank that overwrites the environment that it was started with, as setproctitle does, and starts a program then.
RETITLED = """
import os, subprocess, sys
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
first, end = int(fields[47]), int(fields[48])
sys.stdin.readline()
with open("/proc/self/mem", "r+b", buffering=0) as memory:
    memory.seek(first)
    memory.write(bytes(end - first))
program = subprocess.Popen(["sleep", "600"], env=dict(os.environ))
print(program.pid, flush=True)
sys.stdin.readline()
program.kill()
"""


def test_children_of_a_rank_that_overwrote_its_environment_are_no_ranks(tmp_path: Path) -> None:
    argv, env = python(RETITLED), {**os.environ, "RANK": "3"}
    with subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as rank:
        assert rank.stdin
        assert rank.stdout
        wait_for(lambda: "RANK" in procfs.environment(rank.pid))
        tracker = RankTracker(str(tmp_path), rank.pid)
        assert tracker.find_new()
        rank.stdin.write("\n")
        program = int(rank.stdout.readline())
        wait_for(lambda: procfs.command_line(program)[:1] == ["sleep"])
        new, overwritten = tracker.find_new(), "RANK" not in procfs.environment(rank.pid)
        rank.stdin.write("\n")
    for handle in tracker.pidfds:
        os.close(handle)
    assert overwritten
    assert not new
    assert [each["pid"] for each in tracker.ranks] == [rank.pid]


def test_a_process_that_has_rank_only_in_the_first_read_is_not_a_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(["sleep", "600"], env={"PATH": os.environ["PATH"]}) as child:
        wait_for(lambda: procfs.command_line(child.pid)[:1] == ["sleep"])
        stale = [{"RANK": "3"}]  # as between fork and exec, and for a process that ends
        truth = procfs.environment
        monkeypatch.setattr(procfs, "environment", lambda pid: stale.pop() if stale else truth(pid))
        tracker = RankTracker(str(tmp_path), child.pid)
        new = tracker.find_new()
        child.kill()
    assert not stale
    assert (new, tracker.ranks, tracker.pidfds) == (False, [], {})


REPORT = """\
Failures:
[1]:
  time      : 2026-01-02_10:00:00
  rank      : 5 (local_rank: 1)
  exitcode  : 3 (pid: 702)
Root Cause (first observed failure):
[0]:
  time      : 2026-01-02_10:00:00
  rank      : 4 (local_rank: 0)
  exitcode  : 1 (pid: 701)
"""


def test_ranks_that_ended_before_they_were_found_are_added(tmp_path: Path) -> None:
    (tmp_path / job_files.OUTPUT).write_text(REPORT)
    tracker = RankTracker(str(tmp_path), 0)
    tracker.ranks = [{"rank": 4, "local_rank": 0, "attempt": 0, "pid": 701, "start_time": 1, "ended": 5.0, "code": 1}]
    tracker.complete(str(tmp_path / job_files.OUTPUT), 9.0)
    tracker.complete(str(tmp_path / job_files.OUTPUT), 9.0)
    assert [(each["rank"], each["local_rank"], each["code"], each["pid"]) for each in tracker.ranks] == [
        *((4, 0, 1, 701), (5, 1, 3, 702)),
    ]
    assert job_files.read_json(str(tmp_path / job_files.RANKS)) == tracker.ranks


# Ends at once, and is reaped only on command.
SHORT = """
import os, subprocess, sys
child = subprocess.Popen(["sh", "-c", "exit 5"])
os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
print(child.pid, flush=True)
sys.stdin.readline()
print(child.wait(), flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("is_reaped", [False, True])
def test_a_rank_that_ended_at_once_is_known_from_its_note(tmp_path: Path, is_reaped: bool) -> None:
    (tmp_path / "logs").mkdir()
    with subprocess.Popen(python(SHORT), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout
        assert agent.stdin
        pid = int(agent.stdout.readline())
        if is_reaped:
            agent.stdin.write("\n")
            agent.stdin.flush()
            agent.stdout.readline()
        tracker = RankTracker(str(tmp_path), agent.pid)
        (tmp_path / "logs" / "ranks").write_text(f"3 1 4 2 {pid}\n")
        assert tracker.find_new()
        for handle in list(tracker.pidfds):
            tracker.on_pidfd(handle)
        tracker.sweep()
        assert not tracker.find_new()
        agent.kill()
    (rank,) = tracker.ranks
    names = ("rank", "local_rank", "world_size", "attempt", "pid", "code")
    assert [rank[name] for name in names] == [3, 1, 4, 2, pid, None if is_reaped else 5]
    assert rank["ended"]
    assert job_files.read_json(str(tmp_path / job_files.RANKS)) == tracker.ranks


def test_a_rank_that_was_found_before_its_note_is_not_added_again(agent: Agent, tmp_path: Path) -> None:
    agent.tracker.find_new()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "ranks").write_text(
        "".join(f"{rank} {rank - 4} 8 2 {pid}\n" for rank, pid in agent.pids.items())
    )
    assert not agent.tracker.find_new()
    assert len(agent.tracker.ranks) == 3


def test_unfinished_and_strange_notes_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    tracker = RankTracker(str(tmp_path), 0)
    notes = tmp_path / "logs" / "ranks"
    notes.write_bytes("what is this\n1 2\n² 0 1 0 7\n- - - 0 -\n\xff\n9 0 10 0 99999".encode("latin-1"))
    assert not tracker.find_new()
    with notes.open("a") as file:
        file.write("9\n")
    tracker.complete(str(tmp_path / job_files.OUTPUT), 9.0)
    assert [(rank["rank"], rank["pid"], rank["code"]) for rank in tracker.ranks] == [(9, 999999, None)]
    assert tracker.ranks[0]["ended"]

"""The server over real pipes, with the launch machine's own end of the connection."""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.factories import make_nodes
from tests.hostile import HOSTILE
from tests.remote.place import wait_for
from tests.support import require
from tests.transport.requests import RawRequest
from torchfab.core.errors import HostError
from torchfab.remote import job_files
from torchfab.remote.job import process_search
from torchfab.remote.job.start_barrier import NEVER_RELEASED
from torchfab.transport import bundle
from torchfab.transport.messages.job import ForgetRequest, LogsFrame, LogsRequest, StatusRequest, StopRequest
from torchfab.transport.messages.launch import (
    CommitAnswer,
    CommitRequest,
    PrepareAnswer,
    PrepareRequest,
    ProcessSpec,
    RollbackRequest,
    StartAnswer,
    StartRequest,
)
from torchfab.transport.session import NodeError, Session


class Pipe:
    """A program on this machine, with the interface that torchfab.transport expects of a channel."""

    def __init__(self, argv: Sequence[str], env: dict[str, str]) -> None:
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(argv, env=env, start_new_session=True, **streams)  # type: ignore[call-overload]

    def write(self, data: bytes) -> None:
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def read(self, timeout_s: float) -> bytes | None:
        readable, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        return os.read(self.process.stdout.fileno(), 1 << 16) if readable else None

    def exit_status(self) -> tuple[int | None, str]:
        return self.process.wait(60), self.process.stderr.read().decode()

    def close(self) -> None:
        """Close the connection and wait until the program has ended."""
        for stream in (self.process.stdin, self.process.stdout):
            try:
                stream.close()
            except BrokenPipeError:
                pass
        self.process.wait(60)
        self.process.stderr.close()


class Node:
    """A node of a job on this machine, with its own tmux server."""

    def __init__(self, root: Path, tmux_dir: str) -> None:
        self.root = root
        self.job_id = f"wire-{secrets.token_hex(4)}"
        self.env = {"PATH": os.environ["PATH"], "HOME": str(root), "TMUX_TMPDIR": tmux_dir}
        self.pipes: list[Pipe] = []
        self.session_name = f"{self.job_id}-node0"
        self.launch_address: dict[str, Any] = {
            "job_id": self.job_id,
            "node_dir": str(root / "tf"),
            "node_rank": 0,
            "session": self.session_name,
        }
        self.address = {**self.launch_address, "mask_key": "0a1b"}
        self.folder = Path(job_files.job_folder(str(root / "tf"), self.job_id, 0))

    def connect(self, *before: str) -> Session:
        """Start the program and open a session; `before` is the beginning of the command, before the program."""
        self.pipes.append(Pipe([*before, *bundle.argv(sys.executable)], self.env))
        return Session(make_nodes("localhost")[0], self.pipes[-1])

    def prepare(self, session: Session, **values: Any) -> PrepareAnswer:
        request: dict[str, Any] = {
            "workdir": str(self.root),
            "python": sys.executable,
            "script": None,
            "modules": [],
            "python_path": None,
            "installs": {},
            "programs": [],
            "master_addr": "localhost",
            "peers": [],
            "patience_s": 20,
            "python_timeout_s": 20.0,
            "one_machine": True,
            "port": 0,
            "write": True,
        }
        return session.request(PrepareRequest(**{**request, **self.launch_address, **values}), 60)

    def start(self, session: Session, *argv: str, **values: Any) -> CommitAnswer:
        """Start a process and let it go; return the answer to that."""
        self.hold(session, self.process(*argv, **values))
        return session.request(CommitRequest(), 25)

    def process(self, *argv: str, **values: Any) -> ProcessSpec:
        marks = {"TORCHFAB_JOB_ID": self.job_id, "TORCHFAB_NODE_RANK": "0"}
        process: dict[str, Any] = {
            "name": "agent",
            "argv": list(argv),
            "env": {**marks, **values.pop("env", {})},
            "secrets": {},
            "cwd": str(self.root),
            "rank": None,
            "rank_logs": "",
            "folders": ["logs"],
            "files": {},
            "path": [],
        }
        return ProcessSpec(**{**process, **values})

    def hold(self, session: Session, *processes: ProcessSpec) -> StartAnswer:
        """Start processes that are not let go yet."""
        request = StartRequest(
            session=self.session_name,
            mask_key="0a1b",
            grace_s=5.0,
            start_timeout_s=20.0,
            secret_patterns=["*TOKEN*"],
            processes=list(processes),
        )
        return session.request(request, 25)

    def status(self) -> StatusRequest:
        return StatusRequest(**self.address)

    def stop(self, grace_s: float) -> StopRequest:
        return StopRequest(**self.address, grace_s=grace_s)

    def logs(self, lines: int | None = None) -> LogsRequest:
        return LogsRequest(**self.address, follow=True, lines=lines, ranks=None, grep=None)

    def running(self) -> list[int]:
        return process_search.job_processes(self.job_id, 0)

    def tmux_sessions(self) -> str:
        words = ["tmux", "-L", "torchfab", "list-sessions", "-F", "#{session_name}"]
        return subprocess.run(words, env=self.env, capture_output=True, text=True, check=False).stdout.strip()

    def end(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        if self.running():
            last = self.connect()
            last.request(self.stop(0.1), 60)
            last.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    require("tmux")
    with TemporaryDirectory(prefix="tf-") as tmux_dir:
        made = Node(tmp_path, tmux_dir)
        yield made
        made.end()


def test_prepare_start_and_commit_leave_a_running_job(node: Node) -> None:
    session = node.connect()
    assert node.prepare(session).facts.folder == str(node.folder)
    held = node.hold(session, node.process("sleep", "600"))
    assert (held.started, node.running()) == (["agent"], [])
    kept = session.request(CommitRequest(), 60)
    assert kept.started == ["agent"]
    session.close()
    assert node.tmux_sessions() == node.session_name
    assert len(node.running()) == 1
    again = node.connect()
    assert again.request(node.status(), 60).processes[0].state == "running"
    assert again.request(node.stop(5), 60).left == []
    assert again.request(node.status(), 60).processes[0].state == "stopped"
    again.request(ForgetRequest(**node.address), 60)
    assert not node.folder.exists()
    assert node.running() == []


def test_a_disconnect_after_phase_one_rolls_back(node: Node) -> None:
    session = node.connect()
    port = node.prepare(session).facts.port
    assert node.folder.exists()
    session.close()
    assert not node.folder.exists()
    node.prepare(node.connect())
    assert port is not None
    assert port > 0


def test_a_disconnect_before_commit_rolls_back(node: Node, tmp_path: Path) -> None:
    session = node.connect()
    node.prepare(session)
    node.hold(session, node.process("touch", str(tmp_path / "began")))
    assert node.tmux_sessions() == node.session_name
    session.close()
    assert node.running() == []
    assert node.tmux_sessions() == ""
    assert not node.folder.exists()
    assert not (tmp_path / "began").exists()


def test_commit_fails_and_rolls_back_if_one_process_cannot_start(node: Node) -> None:
    session = node.connect()
    node.prepare(session)
    stubborn = node.process("sh", "-c", "trap '' TERM; sleep 600 & wait; sleep 600", name="rank-0")
    node.hold(session, stubborn, node.process("/no/such/program", name="rank-1"))
    with pytest.raises(NodeError) as caught:
        session.request(CommitRequest(), 25)
    assert [each.what for each in caught.value.problems] == [
        "rank-1: cannot start /no/such/program: No such file or directory"
    ]
    assert node.running()
    session.close()
    assert node.running() == []
    assert node.tmux_sessions() == ""
    assert not node.folder.exists()


def test_a_silent_launch_machine_before_commit_rolls_back(node: Node) -> None:
    session = node.connect()
    node.prepare(session, patience_s=1)
    node.hold(session, node.process("sleep", "600"))
    wait_for(lambda: node.pipes[0].process.poll() is not None)
    assert node.running() == []
    assert not node.folder.exists()


def test_held_processes_never_start_if_the_server_is_killed(node: Node) -> None:
    session = node.connect()
    node.prepare(session)
    node.hold(session, node.process("sleep", "600", secrets={"HF_TOKEN": "hunter2"}))
    node.pipes[0].process.kill()
    wait_for(lambda: (node.folder / "agent" / job_files.EXIT).exists())
    (process,) = node.connect().request(node.status(), 60).processes
    assert (process.state, process.reason) == ("failed", NEVER_RELEASED)
    assert node.running() == []
    assert not (node.folder / "agent" / job_files.SECRETS).exists()


def test_a_held_supervisor_sleeps_until_it_is_released(node: Node) -> None:
    """With a check ten times per second, a thousand supervisors kept one machine fully busy."""
    session = node.connect()
    node.prepare(session)
    node.hold(session, node.process("sleep", "600"))
    status = Path(f"/proc/{(node.folder / 'agent' / job_files.READY).read_text()}/status")

    def sleeps() -> int:
        return int(status.read_text().split("voluntary_ctxt_switches:")[1].split()[0])

    wait_for(lambda: "S (sleeping)" in status.read_text())
    before = sleeps()
    time.sleep(1)
    assert sleeps() - before <= 2
    assert session.request(CommitRequest(), 60).started == ["agent"]


def test_rollback_stops_everything_and_reports_it(node: Node) -> None:
    session = node.connect()
    node.prepare(session)
    node.start(session, "sleep", "600")
    assert node.running()
    answer = session.request(RollbackRequest(**node.launch_address, grace_s=2.0), 60)
    assert (answer.asked, answer.left) == (1, [])
    assert not node.folder.exists()
    assert node.running() == []


def test_secrets_of_the_node_reach_the_job_and_stay_in_no_file(node: Node) -> None:
    node.env["NODES_TOKEN"] = "hunter2"
    session = node.connect()
    node.prepare(session)
    node.start(session, "sh", "-c", 'echo "${#NODES_TOKEN}"; exec sleep 600')
    output = node.folder / "agent" / job_files.OUTPUT
    wait_for(lambda: output.read_text() == "7\n")
    written = [
        path for path in node.root.rglob("*") if path.is_file() and "hunter2" in path.read_text(errors="replace")
    ]
    assert written == []


def test_a_process_that_cannot_start_is_named_in_a_problem(node: Node) -> None:
    session = node.connect()
    node.prepare(session)
    node.hold(session, node.process("/no/such/program"))
    session.post(RawRequest(fields={"op": "commit"}))  # `wait` would raise the problems, without the rest
    (answer,) = wait_for(lambda: session.read_frames(1))
    assert answer["started"] == []
    assert answer["problems"] == [
        {"what": "agent: cannot start /no/such/program: No such file or directory", "fix": ""}
    ]


def test_any_argv_and_environment_travel_over_the_wire(node: Node) -> None:
    session = node.connect()
    node.prepare(session)
    argv = [text for text in HOSTILE.values() if len(text) < 1000]
    env = {f"V_{number}": text for number, text in enumerate(HOSTILE.values())}
    program = (
        "import json, os, sys; e = open('/proc/self/environ', 'rb').read().decode('utf-8', 'surrogateescape');"
        "print(json.dumps([sys.argv[1:], [x for x in e.split(chr(0)) if x[:2] == 'V_' or x[:3] == 'HF_']]))"
    )
    secret = {"HF_TOKEN": "it's\nhunter2"}
    node.start(session, sys.executable, "-S", "-c", program, *argv, env=env, secrets=secret)
    output = node.folder / "agent" / job_files.OUTPUT
    wait_for(lambda: (node.folder / "agent" / job_files.EXIT).exists() and output.read_text().endswith("\n"))
    got_argv, got_env = json.loads(output.read_text())
    assert got_argv == argv
    assert dict(pair.split("=", 1) for pair in got_env) == {**env, **secret}
    assert "hunter2" not in "".join(path.read_text() for path in node.folder.rglob("*.json"))


@pytest.mark.parametrize("noise", ["Welcome to node1", "\\036not a frame\\n", "\\0365 of 7\\n\\036", "\\n\\n\\033[31m"])
def test_output_of_a_login_shell_is_skipped(node: Node, noise: str) -> None:
    session = node.connect("sh", "-c", f"printf '{noise}'; exec \"$@\"", "sh")
    assert session.request(node.status(), 60).exists is False


def test_a_failed_request_is_reported_and_the_next_one_works(node: Node) -> None:
    session = node.connect()
    with pytest.raises(NodeError, match=r"^KeyError: ") as caught:
        session.request(RawRequest(fields={"op": "status"}), 60)
    assert len(caught.value.problems) == 1
    with pytest.raises(NodeError, match="no_such"):
        session.request(RawRequest(fields={"op": "no_such"}), 60)
    assert session.request(node.status(), 60).exists is False


def test_logs_are_streamed_until_the_job_has_ended(node: Node) -> None:
    session = node.connect()
    node.prepare(session)
    node.start(session, "sh", "-c", "echo first; sleep 0.3; echo last; exit 7")
    session.post(node.logs())
    frames: list[LogsFrame] = []
    while not any(frame.end for frame in frames):
        frames += session.read_frames(10)
    assert [line[2] for frame in frames for line in frame.lines] == ["first", "last"]
    assert [frame.end.processes[0].code for frame in frames if frame.end] == [7]


def test_an_idle_stream_sends_heartbeats(node: Node) -> None:
    session = node.connect()
    node.prepare(session)
    node.start(session, "sleep", "600")
    session.silence_s = 0.4  # the node sends four heartbeats in this time
    session.post(node.logs(lines=0))
    session.silence_s = 30.0
    times: set[float] = set()

    def beats() -> int:
        times.update([] if session.read_frames(0.1) else [session.last_read])
        return len(times)

    wait_for(lambda: beats() > 3)


def test_a_silent_stream_is_given_up(node: Node) -> None:
    session = node.connect()
    session.silence_s = 1.0
    session.post(node.logs(lines=0))
    os.kill(node.pipes[-1].process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(HostError, match="no data for 1 s"):
            wait_for(lambda: session.read_frames(0.1) and False)
    finally:
        os.kill(node.pipes[-1].process.pid, signal.SIGCONT)


def test_the_end_of_the_program_is_reported_with_its_error_output(node: Node) -> None:
    with pytest.raises(HostError, match="ended there with code 3 before it answered: no such thing"):
        node.connect("sh", "-c", "echo no such thing >&2; exit 3", "sh").request(node.status(), 60)


def test_a_python_that_is_too_old_is_reported(node: Node, tmp_path: Path) -> None:
    program = tmp_path / "node.py"  # too long for a word of a command
    program.write_text(bundle.source().replace("sys.version_info < (3, 9)", "sys.version_info < (9, 9)"))
    done = subprocess.run([sys.executable, "-I", "-S", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("torchfab-needs-python 3.9, this is 3.")


def test_a_missing_answer_is_reported(node: Node) -> None:
    session = node.connect("sh", "-c", "cat > /dev/null", "sh")
    with pytest.raises(HostError, match=r"gave no answer within 0\.2 s"):
        session.request(node.status(), 0.2)


def test_the_program_gets_its_source_and_installs_nothing() -> None:
    argv = bundle.argv("python3")
    assert argv[:4] == ("python3", "-I", "-S", "-c")
    assert int(argv[5]) == len(bundle.packed())
    compile(bundle.source(), "node.py", "exec")

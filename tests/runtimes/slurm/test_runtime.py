"""The Slurm runtime, with a conversation that is played to it: lost connections, unconfirmed jobs, what is shown."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.runtimes.slurm.test_state import RECORD, node, process, told
from torchfab.commands.logs import show_logs, wait
from torchfab.commands.stop import stop
from torchfab.commands.why import show_why
from torchfab.core.errors import HostError, TorchfabError
from torchfab.core.events import BacklogRead, ContactLost, Lines, StatusChanged, Tick
from torchfab.monitoring.job_watcher import Printer
from torchfab.records import Records
from torchfab.runtimes.slurm import runtime
from torchfab.runtimes.slurm.state import job_status
from torchfab.transport import messages, node_streams
from torchfab.transport.messages import Request
from torchfab.transport.messages.slurm import SlurmStatus
from torchfab.transport.session import NodeError
from torchfab.why import diagnosis
from torchfab.why.causes import Kind

LOGIN = {"rank": 0, "host": "login", "user": "me", "port": 2222, "address": "", "slots": None, "gpus": [], "origin": ""}


class Played:
    """A session that answers from a list: answers, lists of frames, or an error to raise."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers
        self.asked: list[Mapping[str, Any]] = []
        self.answer_type: Any = None
        self.closed = 0

    def request(self, request: Request[Any], timeout_s: float) -> Any:
        self.post(request)
        data = json.dumps(self._next()).encode()
        if problems := messages.decode(data, messages.Header).problems:
            raise NodeError(problems)
        return messages.decode(data, request.ANSWER)

    def post(self, request: Request[Any]) -> None:
        self.asked.append(msgspec.to_builtins(request))
        self.answer_type = request.ANSWER

    def read_frames(self, timeout_s: float = 0.0) -> list[Any]:
        return [messages.decode(json.dumps(each).encode(), self.answer_type) for each in self._next()]

    def _next(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    made = Played([])
    monkeypatch.setattr(runtime, "open_session", lambda *_: made)
    monkeypatch.setattr(node_streams, "open_session", lambda *_: made)
    monkeypatch.setattr(node_streams, "_RETRY_S", 0.0)
    monkeypatch.setattr(runtime, "_POLL_S", 0.0)
    return made


def record(tmp_path: Path, **details: Any) -> Any:
    base = {"slurm_id": "17", "folder": "/f", "login": LOGIN}
    return dataclasses.replace(RECORD, folder=tmp_path, details={**base, **details})


def answer(state: str, *nodes: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"slurm": told(state, **more), "nodes": nodes, "exists": True, "stop_asked": None, "said": "", "now": 60.0}


PENDING = answer("PENDING", why="Resources", hosts=[])
RUNNING = answer("RUNNING", node(0, process("running", None)), node(1))
DONE = answer("COMPLETED", node(0, process("succeeded", 0)), node(1, process("succeeded", 0)))
REQUEST = {"follow": True, "lines": None, "ranks": None, "grep": None}


def test_broken_stream_resumes_at_its_last_offset(played: Played, tmp_path: Path) -> None:
    line = {"node": 1, "lines": [[2, 50.0, "hello"]]}
    played.answers = [[{"seen": RUNNING}, line, {"offsets": {"/f/log": 6}}], HostError("lost"), [{"end": DONE}]]
    events = [event for event in runtime.follow(record(tmp_path), REQUEST) if not isinstance(event, Tick)]
    assert [type(event) for event in events] == [StatusChanged, Lines, ContactLost, StatusChanged]
    assert isinstance(events[1], Lines)
    assert events[1].node.host == "n2"
    assert isinstance(events[2], ContactLost)
    assert events[2].node.label == "login:2222"
    assert [each.get("offsets") for each in played.asked] == [None, {"/f/log": 6}]


def test_wait_prints_pending_reason_nodes_and_end(
    played: Played, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = {
        "slurm": {"error": "no controller"},
        "nodes": [],
        "exists": True,
        "stop_asked": None,
        "said": "",
        "now": 1.0,
    }
    frames = [{"seen": PENDING}, {"past": True}, {"seen": PENDING}, {"seen": RUNNING}, {"seen": lost}, {"end": DONE}]
    played.answers = [[frame] for frame in frames]
    assert wait(record(tmp_path), 30.0, 0.0) == 0
    assert capsys.readouterr().err.splitlines()[:3] == [
        "gpt2: pending (waits for nodes to become free (Resources))",
        "gpt2: runs on n[1-2]",
        "gpt2: unreachable (Slurm cannot be queried: no controller)",
    ]


def test_logs_fail_if_the_login_node_is_unreachable(
    played: Played, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    played.answers = [HostError("refused")] * 3
    assert show_logs(record(tmp_path), {**REQUEST, "follow": False}, printer=Printer(), stall_s=0.0) == 1
    assert "login:2222: refused" in capsys.readouterr().err


def test_remote_problem_ends_the_stream(played: Played, tmp_path: Path) -> None:
    played.answers = [[{"problems": [{"what": "OSError: disk", "fix": ""}]}]]
    (event,) = [event for event in runtime.follow(record(tmp_path), REQUEST) if not isinstance(event, Tick)]
    assert isinstance(event, StatusChanged)
    assert (event.status.state, event.status.reason) == ("unreachable", "OSError: disk")


def test_failed_status_request_gives_unreachable(played: Played, tmp_path: Path) -> None:
    played.answers = [HostError("timeout")]
    found = runtime.status(record(tmp_path))
    assert (found.state, found.reason, found.has_ended, found.exit_code) == ("unreachable", "timeout", False, None)
    assert played.closed == 1


def test_failed_submission_closes_without_keep(played: Played, tmp_path: Path) -> None:
    from tests.launchers.test_slurm import full_job
    from torchfab.launchers.slurm import plan

    played.answers = [{"problems": [{"what": "there is no sbatch here", "fix": "install it"}]}]
    with pytest.raises(TorchfabError) as caught:
        runtime.submit(record(tmp_path), plan(full_job()))
    assert str(caught.value) == "login:2222: there is no sbatch here\n  fix: install it"
    assert [each["op"] for each in played.asked] == ["slurm_submit"]
    assert played.closed == 1
    played.answers = [{"slurm_id": "18"}, {}]
    details = runtime.submit(record(tmp_path), plan(full_job()))
    assert details == {"slurm_id": "18", "known_as": "Slurm job 18"}
    assert [each["op"] for each in played.asked[1:]] == ["slurm_submit", "commit"]


def test_unconfirmed_job_is_lost_and_can_be_removed(
    played: Played, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / RECORD.name
    folder.mkdir()
    told = dataclasses.replace(RECORD, folder=folder, details={"folder": "/f"})
    unconfirmed = Records(tmp_path).with_details(told, login=LOGIN)
    found = runtime.status(unconfirmed)
    assert (found.state, found.has_ended) == ("lost", True)
    assert wait(unconfirmed, 30.0, 0.0) == 1
    assert stop(unconfirmed, 1.0) == 0
    assert "its submission was never confirmed" in capsys.readouterr().out
    played.answers = [{}]
    assert runtime.forget(unconfirmed) == {}
    young = dataclasses.replace(unconfirmed, created=time.time())
    assert (runtime.status(young).state, runtime.status(young).has_ended) == ("pending", False)


@pytest.mark.parametrize(("given", "grace_s"), [(None, 90.0), (3.0, 3.0)])
def test_stop_uses_the_grace_of_the_launch_unless_overridden(
    played: Played, tmp_path: Path, given: float | None, grace_s: float
) -> None:
    (tmp_path / RECORD.name).mkdir()
    launched = dataclasses.replace(RECORD, folder=tmp_path / RECORD.name, grace_s=90.0)
    known = Records(tmp_path).with_details(launched, slurm_id="17", folder="/f", login=LOGIN)
    played.answers = [{"before": "RUNNING", "asked": 2, "killed": [], "left": ["7 (python)"], "seconds": 1.0}]
    assert stop(known, given) == 1
    assert [each["grace_s"] for each in played.asked] == [grace_s]


def test_attach_goes_through_the_login_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = job_status(record(tmp_path), msgspec.convert(RUNNING, SlurmStatus), 60.0, 60.0)
    where = running.nodes[0].node
    argv = runtime.attach_argv(record(tmp_path), where, "")
    words = "srun --jobid=17 --overlap --pty --nodes=1 --ntasks=1 --nodelist=n1"
    assert argv == ("ssh", "-p", "2222", "-l", "me", "-t", "--", "login", f"exec {words} /bin/bash")
    monkeypatch.setenv("SHELL", "/bin/zsh")
    local = {**LOGIN, "host": "localhost", "user": "", "port": None}
    assert runtime.attach_argv(record(tmp_path, login=local), where, "") == (*words.split(), "/bin/zsh")


def test_backlog_read_flushes_the_printer(played: Played, tmp_path: Path) -> None:
    played.answers = [[{"past": True}], [{"end": DONE}]]
    events = [type(event) for event in runtime.follow(record(tmp_path), REQUEST)]
    assert [event for event in events if event is not Tick] == [BacklogRead, StatusChanged]


# ---- why


def why_of(tmp_path: Path) -> diagnosis.Diagnosis:
    return diagnosis.diagnose(runtime.evidence(record(tmp_path)))


def test_why_reads_the_logs_of_all_nodes_from_the_folder(played: Played, tmp_path: Path) -> None:
    traceback = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\nValueError: bad\n'
    log = {"label": 0, "path": "/f/stderr.log", "size": 1, "written": 50.0, "text": traceback}
    told_here = {"ends": {}, "logs": [log], "reports": []}
    seen = answer("FAILED", node(0, process("failed", 1, time=50.0)), exit="1:0", hosts=["n1"])
    played.answers = [{**seen, "evidence": [told_here], "batch": ""}]
    found = why_of(tmp_path)
    assert played.asked[0]["op"] == "slurm_evidence"
    assert (found.cause.kind, found.cause.words) == (Kind.SCRIPT, "the script raised ValueError: bad")
    assert (found.first and found.first.host, found.first and found.first.rank) == ("n1", 0)


@pytest.mark.parametrize(
    ("state", "kind", "name"),
    [
        ("OUT_OF_MEMORY", Kind.MEMORY, "host-memory"),
        ("TIMEOUT", Kind.KILLED, "time-limit"),
        ("NODE_FAIL", Kind.NODE, "node-failed"),
        ("PREEMPTED", Kind.KILLED, "preempted"),
        ("CANCELLED", Kind.STOPPED, "cancelled"),
    ],
)
def test_why_shows_the_reason_if_slurm_ended_the_job(
    played: Played, tmp_path: Path, state: str, kind: Kind, name: str
) -> None:
    killed = process("failed", -9, time=50.0)
    said = "slurmstepd: error: Detected 1 oom_kill event in StepId=17.batch."
    played.answers = [{**answer(state, node(0, killed), exit="0:9"), "evidence": [{}], "batch": said}]
    found = why_of(tmp_path)
    assert (found.cause.kind, found.cause.name) == (kind, name)
    assert found.notes == (f"output of the batch script: {said}",)


def test_why_shows_output_of_a_batch_script_that_failed_early(played: Played, tmp_path: Path) -> None:
    seen = {**answer("FAILED", exit="1:0", hosts=[]), "said": "module: command not found"}
    played.answers = [{**seen, "evidence": [], "batch": "module: command not found\n"}]
    found = why_of(tmp_path)
    assert (found.cause.kind, found.cause.name) == (Kind.SCRIPT, "batch-script")
    assert "module: command not found" in found.cause.words


def test_why_names_an_unreachable_slurm(played: Played, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    played.answers = [HostError("login: no answer")]
    assert show_why(record(tmp_path), as_json=False) == 1
    assert "unreachable:\n  the scheduler: login: no answer" in capsys.readouterr().out

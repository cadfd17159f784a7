"""Answers of nodes: a valid one is accepted; a changed one is rejected, or it can be used and shown."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest import mock

import msgspec
import pytest
from hypothesis import strategies as st

import torchfab.stacks.report
import torchfab.why.report
from tests.support import fuzzed, refusal
from tests.transport.requests import STREAMING, RequestType, operation, request_types, without_values
from tests.transport.test_messages_fuzz import JSON, NODE, RecordedChannel, frame
from torchfab.api import function_calls
from torchfab.commands import forward as forward_task
from torchfab.commands import pull as pull_task
from torchfab.commands import run as run_task
from torchfab.commands import stop
from torchfab.commands.env import Push, outcome_lines
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core import status
from torchfab.core.clock import Clock
from torchfab.core.errors import HostError
from torchfab.core.requirements_file import PackageList
from torchfab.core.specs import Node
from torchfab.doctor import collect, consistency, launch_warnings, render
from torchfab.doctor.model import CheckRequirements, NodeReport, Report
from torchfab.launching.launch import describe_setups
from torchfab.monitoring import checkpoint_save, host_load, live_load
from torchfab.profiling import report as profile_report
from torchfab.profiling import trace as profiling_trace
from torchfab.profiling.model import JobProfile, RankTimes, Unprofiled
from torchfab.records import Record
from torchfab.runtimes import tmux, tmux_logs, tmux_profile, tmux_stacks
from torchfab.runtimes.slurm import runtime
from torchfab.runtimes.tmux_call_results import Outcome
from torchfab.stacks.model import StackDump
from torchfab.supervise import gpu_memory
from torchfab.sync import pull as pulling
from torchfab.sync import results
from torchfab.transport.messages import (
    calls,
    doctor,
    env,
    forward,
    job,
    launch,
    load,
    profile,
    pull,
    run,
    slurm,
    stacks,
    sync,
)
from torchfab.transport.remote_command import HostRun
from torchfab.transport.session import NodeError, Session
from torchfab.transport.session_pool import Response, SessionPool
from torchfab.why import diagnosis

RANK = {"rank": 0, "local_rank": 0, "world_size": 2, "attempt": 0, "pid": 7, "start_time": 1, "started": 5.0}
PROCESS = {
    "name": "agent",
    "state": "failed",
    "reason": "",
    "pid": 6,
    "started": 5.0,
    "ended": 8.0,
    "code": 1,
    "signal": None,
    "warned": None,
    "ranks": [{**RANK, "ended": 7.0, "code": 1}],
    "reported": [{"rank": 1, "code": 7}],
    "last_line": {"time": 6.0, "text": "step 1", "label": 0},
}
STATUS = {"processes": [PROCESS], "now": 10.0, "exists": True, "stop_asked": None, "left": ["9 (x)"]}
RUNNING = {**PROCESS, "state": "running", "ended": None, "code": None, "ranks": [{**RANK, "ended": None, "code": None}]}
LOG_PART = {"text": "last enqueued work: 3\nKeyError: 1", "time": 7.0, "line": 3, "gap": True}
GATHERED = {
    "ends": {"agent": {"asked": None, "killed": [], "left": [], "oom_kills": 1, "time": 8.0}},
    "logs": [{"label": 0, "path": "/x/log", "size": 9, "written": 7.0, "parts": [LOG_PART]}],
    "reports": [{"label": 0, "attempt": 0, "message": "KeyError", "traceback": ""}],
}
EVIDENCE = {
    **GATHERED,
    "kernel": {"lines": [[6.0, "Out of memory: Killed process 7 "]], "unread": ""},
    "disks": [
        {"path": "/x", "free": 5, "size": 10**12, "free_files": 3, "read_only": False},
        {"path": "/y", "free": None, "size": None},
    ],
    "halted": ["rank 0"],
    "gpus": 8,
    "boot_id": "1f2e",
}
PLACE = {
    "path": "/x",
    "at": "/",
    "exists": True,
    "enterable": True,
    "free": 1,
    "size": 2,
    "free_files": None,
    "filesystem": "ext4",
    "token": "/x/t",
    "problem": "",
}
FACTS = {
    "folder": "/n/jobs/x/node-0",
    "hostname": "a",
    "gpus": 1,
    "cpus": 2,
    "time": 5.0,
    "port": 29400,
    "is_root": False,
    "versions": {"torch": "2.13.0"},
    "glance": {
        "disk": PLACE,
        "script": "abcdef",
        "holders": [{"pid": 3, "memory_mib": None}],
        "launcher_variables": ["RANK"],
    },
    "packages": {"digest": "a1b2", "source": "uv.lock"},
    "setup": {"shell": "/bin/zsh", "changed": ["PATH"], "removed": ["X"], "python": "/venv/bin/python"},
}
GPU = {
    "bus": "0000:01:00.0",
    "name": "H100",
    "uuid": "GPU-1",
    "memory_mib": 80000,
    "mig": False,
    "sick": "ERR!",
    "ecc": 1,
    "repair": "it needs a reset",
    "slowdown": ["hw_slowdown"],
    "processes": [{"pid": 4, "name": "python", "memory_mib": 3}],
}
XID = "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."
PROBE = {
    "machine": {"hostname": "a", "boot_id": "b", "network": "n", "own_addresses": ["127.0.1.1"], "infiniband": True},
    "python": {"python": "3.12.1", "path": "/p", "torch": "2.13.0", "cuda": "12.4", "nccl": "2.2"},
    "gpus": {"devices": 2, "driver": "550", "cuda": "12.4", "gpus": [GPU], "problem": "", "xids": [XID]},
    "tmux": {"version": "3.1", "oldest": "3.2"},
    "places": {"node_dir": PLACE, "workdir": PLACE, "tmp": PLACE, "shm": PLACE},
    "limits": {"files": 1000, "locked": 65536, "processes": None},
    "interfaces": [{"name": "eth0", "up": True, "mtu": 1500, "addresses": ["10.0.0.1"]}],
    "environment": {"NCCL_SOCKET_IFNAME": "eth9"},
    "unused_memory": [{"user": "a", "files": 1, "bytes": 5}],
    "jobs": [{"job_id": "x-1", "processes": 2, "supervised": False, "example": "9 (x)"}],
    "code": {"by": "git", "files": 3, "digest": "0123456789abcdef", "whole": True},
    "port": {"port": 29400, "greeting": "0011"},
    "failed": {"shm": "OSError: no"},
}
CONNECTION_TEST = {"outcome": "stranger", "why": "", "address": "10.0.0.1", "seconds": 0.1}
CONNECTIVITY = {
    "addresses": ["10.0.0.1"],
    "resolve_s": 0.1,
    "source": "10.0.0.1",
    "connection": CONNECTION_TEST,
    "sees": {"workdir": True},
    "files": {"train.py": "0123"},
}
THREAD = {"name": "MainThread", "active": True, "gil": True, "frames": [["f", "/x/train.py", 3, "time.sleep(9)"]]}
STACK = {
    "process": "agent",
    "rank": 0,
    "pid": 7,
    "ended": None,
    "code": None,
    "state": "S",
    "cpu": 0.1,
    "tracer": 0,
    "waits_in": "",
    "by": "py-spy",
    "problem": "",
    "signal": "",
    "threads": [THREAD],
}
BARE = {**STACK, "rank": 1, "threads": [], "problem": "permission denied"}
STACKS = {
    "machine": "x86_64",
    "spy": "on the PATH",
    "rights": {"ptrace_scope": "1", "cap_sys_ptrace": False, "uid": 0},
    "ranks": [STACK, BARE],
}
GPU_LOAD = {
    "index": 0,
    "uuid": "GPU-1",
    "name": "H100",
    "sick": "",
    "utilization": 99.0,
    "power": 80.0,
    "power_limit": 700.0,
    "memory": 5.0,
    "memory_total": 80000.0,
    "temperature": None,
    "processes": [{"pid": 7, "memory": 5.0, "name": "python"}],
}
LOAD = {
    **dict.fromkeys(("cpu", "memory", "memory_total", "load", "received", "sent", "disk_read", "disk_written"), 0.5),
    "cpus": 4,
    "gpus": [GPU_LOAD],
    "problem": "",
    "time": 5.0,
    "job": {
        "status": {**STATUS, "processes": [RUNNING]},
        "step": 3,
        "steps": 9,
        "steps_s": 1.5,
        "lines_s": 2.0,
        "silent_s": 0.0,
    },
}
OF_SLURM = {
    "state": "FAILED",
    "why": "",
    "exit": "1:0",
    "limit": "01:00:00",
    "hosts": ["a"],
    "restarts": 0,
    "start": "",
}
SLURM = {
    "slurm": OF_SLURM,
    "nodes": [{"rank": 0, "host": "a", "status": STATUS}, {"rank": 1, "host": "", "status": None}],
    "exists": True,
    "stop_asked": None,
    "said": "srun: error",
    "now": 10.0,
}
LINE = [0, 5.0, "step 1"]
RANK_ENDS = {"ended": 2, "killed": 1, "seconds": 0.4, "unfinished": 1, "writing": ["/x/step-5.part"]}
FILE_MATCH = {
    "pattern": 0,
    "base": "/x",
    "name": "runs",
    "files": [["runs/a", 3], ["runs/b/c", 0]],
    "links": [["runs/latest", "a"]],
}
RUN_END = {"code": 1, "timed_out": False, "stopped": False, "seconds": 0.5, "dropped": 7, "left": []}
STOPPED = {"asked": 1, "killed": ["9 (x)"], "left": [], "seconds": 0.5, "rank_ends": RANK_ENDS}
FOLDER = Path("/nowhere")
JOB = Record(
    *(FOLDER, "x", "x-1", "tmux", "per-node", 0.0, ("train.py",), (NODE,), "/n", 2, 1),
    *(ConnectionSettings(), {}, {}),
)
LOGIN = {**vars(Node(0, "login")), "gpus": []}
SLURM_JOB = dataclasses.replace(JOB, nodes=(), min_nodes=2, details={"slurm_id": "7", "folder": "/x", "login": LOGIN})
LOGS_REQUEST = {"follow": False, "lines": None, "ranks": None, "grep": None}
STACKS_REQUEST = {"ranks": None, "native": False, "timeout_s": 1.0, "signal": ""}


def check_shown(*values: Any) -> None:
    """Fail if the output has control characters."""
    text = "\n".join(value if isinstance(value, str) else json.dumps(value, default=str) for value in values)
    assert not [sign for sign in text if (ord(sign) < 32 and sign not in "\t\n") or 127 <= ord(sign) < 160]
    assert not re.search(r"\\u00(?:0|1|7f|8|9)", text)  # in JSON they are written so


def show_job(found: status.JobStatus) -> None:
    check_shown(status.table_rows(found), status.as_json("x", found), str(found.first_failure))
    assert found.exit_code is None or 0 <= found.exit_code < 256


def with_answer(function: Callable[..., Any], answer: Any, *arguments: Any) -> Any:
    """Call an operation of the tmux runtime, whose only node gives this answer."""
    with mock.patch.object(tmux, "request_all", return_value=iter([(NODE, Response(answer, 9.0, 10.0))])):
        return function(JOB, *arguments)


def use_status(answer: status.StatusReport) -> None:
    show_job(with_answer(tmux.status, answer))


def use_stopped(answer: job.StopAnswer) -> None:
    first = iter([(NODE, Response(job.EndRanksAnswer(2), 9.0, 10.0))])
    second = iter([(NODE, Response(answer, 9.0, 10.0))])
    with mock.patch.object(SessionPool, "request", side_effect=[first, second]):
        (report,) = tmux.stop(JOB, 1.0)
    assert report.status
    show_job(status.JobStatus((report.status,), 1))
    check_shown(stop._stop_summary(report), stop._ranks_summary([report], 1.0))


def use_evidence(answer: job.EvidenceAnswer) -> None:
    whole = diagnosis.diagnose(with_answer(tmux.evidence, answer))
    check_shown(torchfab.why.report.render(whole), torchfab.why.report.as_json(whole))


def use_facts(answer: launch.PrepareAnswer) -> None:
    prepared = tmux.PreparedNode(NODE, answer.facts, 9.0, 10.0)
    check_shown(vars(prepared.plan_facts), prepared.plan_node.python)
    whole = tmux.Prepared(ConnectionSettings(), (prepared.plan_node,), answers={NODE.rank: prepared})
    check_shown(*describe_setups(whole))
    clocks = {NODE.rank: Clock(prepared.clock_ahead_s, 0.5)}
    found = launch_warnings.warnings([NODE], {NODE.rank: prepared.facts}, clocks)
    check_shown(*(render.render_finding(each) for each in found))


TRUE_PROBE = msgspec.convert(PROBE, doctor.ProbeAnswer)
TRUE_CONNECTIVITY = msgspec.convert(CONNECTIVITY, doctor.ConnectivityAnswer)


def use_probe(answer: doctor.ProbeAnswer) -> None:
    use_doctor(probe=answer, connectivity=TRUE_CONNECTIVITY, clock=Clock(0.0, 0.1))


def use_connectivity(answer: doctor.ConnectivityAnswer) -> None:
    use_doctor(probe=TRUE_PROBE, connectivity=answer)


def use_doctor(**values: Any) -> None:
    other = NodeReport(Node(1, "other"), TRUE_PROBE, TRUE_CONNECTIVITY, Clock(0.0, 0.1))
    wanted = CheckRequirements("/w", "python", "/n", names=("train.py",), digest="0")
    for nodes in (
        (NodeReport(NODE, **values), other),
        (dataclasses.replace(other, node=NODE), NodeReport(other.node, **values)),
    ):
        found = Report(nodes, collect.findings(nodes, wanted, ConnectionSettings()), 1.0)
        check_shown(render.render_report(found), render.as_json(found))
        consistency.ranks_to_list_files(nodes)


def show_stacks(dump: StackDump) -> None:
    check_shown(torchfab.stacks.report.render("x", dump, True, True), torchfab.stacks.report.render("x", dump))
    check_shown(torchfab.stacks.report.as_json("x", dump, False))


def use_stacks(answer: stacks.StacksAnswer) -> None:
    with mock.patch.object(tmux_stacks, "SessionPool") as pool, mock.patch.object(tmux_stacks, "program_for"):
        pool.return_value.__enter__.return_value.map.return_value = [(NODE, answer)]
        show_stacks(tmux.stacks(JOB, STACKS_REQUEST))


class OneFrame:
    """A stream that has one frame."""

    def __init__(self, frame: load.LoadFrame) -> None:
        self.frame = frame

    def poll(self) -> Iterator[tuple[Node, list[load.LoadFrame]]]:
        yield NODE, [self.frame]

    def reconnect(self, node: Node) -> None:
        assert self.frame.problems


def use_load(answer: load.LoadFrame) -> None:
    shown = {NODE.rank: host_load.HostLoad(NODE)}
    live_load.take_updates(cast(Any, OneFrame(answer)), shown)
    for views in (tuple(shown.values()), tuple(shown.values()) * 40):
        snapshot = host_load.Snapshot(9.0, views, "x", frozenset({0}), 1.0, 1)
        check_shown(host_load.render(snapshot), host_load.as_json(snapshot))


def use_gpu_memory(answer: load.GpuMemoryAnswer) -> None:
    if answer.held:
        check_shown(gpu_memory.describe("node1", answer.held))


def use_lines(answer: job.LogsFrame) -> None:
    list(tmux_logs._NodeLogs(NODE).events([answer]))


def use_files(answer: sync.FilesAnswer) -> None:
    counts = (answer.checked, answer.missing, answer.differing)
    result = results.SyncResult(NODE, False, results._NOTHING, *counts, tuple(answer.names))
    check_shown(*results.summary_lines([result], 3, 1.0), results.as_json([result], {}, 3))


def use_run(answer: run.RunFrame) -> None:
    made = HostRun(NODE)
    made.add(answer)
    runs = (made, HostRun(Node(1, "other"), ["a"], [], answer.end))
    check_shown(*run_task.folded(runs, lambda each: each.out), *run_task.notes(runs), run_task.to_json(runs))
    error = run_task.failure(runs)
    assert 0 <= (error.exit_code if error else 0) < 256
    check_shown(str(error), str(run_task.interrupted(runs)))


def use_found(answer: pull.FindFilesAnswer) -> None:
    matches = [
        pulling.Match(node, each.base, each.name, dict(each.files), dict(each.links))
        for node in (NODE, Node(1, "other"))
        for each in answer.matches
    ]
    for digests in ({}, {place: "x" for places in pulling.shared_files(matches).values() for place in places}):
        transfers = pulling.transfers(matches, pulling.differing_names(matches, digests))
        check_shown(*pull_task.summary(transfers, matches, "/here", 1.0))
    for match in matches:
        for name in match.files:
            error = refusal(HostError, partial(pulling.check_name, name))
            assert error or ".." not in Path(name).parts


def use_listeners(answer: forward.ListenersAnswer) -> None:
    if answer.listeners:
        check_shown(str(forward_task.several_found([(NODE, each) for each in answer.listeners])))


def use_push(answer: env.PushEnvAnswer) -> None:
    push = Push(PackageList("uv.lock", ""), "", ".venv", "/w", "python3", 1.0)
    check_shown(*outcome_lines(push, [(NODE, answer)]))


def with_slurm_answer(function: Callable[..., Any], answer: Any, *arguments: Any) -> Any:
    """Call an operation of the Slurm runtime, whose login node gives this answer."""
    sent = RecordedChannel(frame({**msgspec.to_builtins(answer), "of": 1}))
    with mock.patch.object(runtime, "_open", return_value=Session(NODE, sent)):
        return function(SLURM_JOB, *arguments)


def use_slurm_status(answer: slurm.SlurmStatus) -> None:
    show_job(with_slurm_answer(runtime.status, answer))


def use_slurm_evidence(answer: slurm.SlurmEvidence) -> None:
    whole = diagnosis.diagnose(with_slurm_answer(runtime.evidence, answer))
    check_shown(torchfab.why.report.render(whole), torchfab.why.report.as_json(whole))


def use_slurm_stop(answer: slurm.SlurmStopAnswer) -> None:
    (report,) = with_slurm_answer(runtime.stop, answer, 1.0)
    check_shown(stop._stop_summary(report))


def use_slurm_stacks(answer: slurm.SlurmStacksAnswer) -> None:
    if not answer.wants:
        show_stacks(with_slurm_answer(runtime.stacks, answer, STACKS_REQUEST))


SIGNALLED = {"ranks": [{"rank": 0, "pid": 7, "effect": "handled", "sent": True}]}


def use_signalled(answer: job.SignalAnswer) -> None:
    check_shown(*(str(each) for each in tmux.signal_report(NODE, answer).ranks))


def use_slurm_signalled(answer: slurm.SlurmSignalAnswer) -> None:
    fields = msgspec.to_builtins(answer)
    sent = RecordedChannel(b"".join(frame({**fields, "of": number}) for number in (1, 2)))
    with mock.patch.object(runtime, "_open", return_value=Session(NODE, sent)):
        reports = runtime.signal(SLURM_JOB, "SIGUSR1", None)
    check_shown(*(str(each.ranks) for each in reports), *(str(each.error or "") for each in reports))


CHECKPOINT_FILE = {"path": "/x/runs/step-5.pt", "root": "/x/runs", "size": 10, "changed": 6.0, "whole": True}
CHECKPOINT = {"cwd": "/x", "running": 2, "step": 5, "clocks": {"/x/runs": 5.0}, "busy": ["1:2"]}


def use_checkpoint(answer: job.CheckpointAnswer) -> None:
    save = checkpoint_save.CheckpointSave({NODE: answer})
    assert set(save.requests) <= {NODE.rank}
    save.feed({NODE: answer}, 0.0)
    check_shown(*(str(each) for each in save.files), *save.folders)
    if save.files:
        check_shown(checkpoint_save.describe(save.files, save.logged_step))


def use_slurm_lines(answer: slurm.SlurmLogsFrame) -> None:
    list(runtime._JobLogs(SLURM_JOB, LOGS_REQUEST).events(NODE, [answer]))


OUTCOME = {
    "rank": 1,
    "files": {"failure": 7},
    "failure": {"time": 5.0, "type": "ValueError", "message": "bad batch", "traceback": "Traceback\n  x"},
}


def use_outcomes(answer: calls.OutcomesAnswer) -> None:
    for each in answer.ranks:
        assert each.rank >= 0
        if each.failure is not None:
            error = function_calls.function_error(Outcome(NODE, each))
            check_shown(str(error))


PROFILED = {
    "rank": 0,
    "pid": 7,
    "begun": 5.0,
    "ended": 7.0,
    "size": 9,
    "devices": "0",
    "calls": [["0", 3, "gloo:all_reduce", 5.5]],
}


def use_profiles(answer: profile.ProfileResultAnswer) -> None:
    collected = tmux_profile._Profile(JOB, None, 2.0, FOLDER, {NODE.rank: Clock(0.1, 0.001)})
    missing = [Unprofiled(each.rank, NODE.label, each.problem) for each in answer.ranks if each.problem]
    ranks = [collected.profile_of(NODE, each) for each in answer.ranks if not each.problem]
    times = [
        RankTimes(each.rank, profiling_trace.rank_name(each, []), each.begun, each.ended, (), (), (), ())
        for each in ranks
    ]
    whole = JobProfile(tuple(ranks), tuple(missing), 0.001, {})
    check_shown(profile_report.render("x", "x.json.gz", 2.0, whole, times))
    check_shown(profile_report.as_json("x", "x.json.gz", 2.0, whole, times))


class Case(NamedTuple):
    """A valid answer to a request, and the function that reads and shows it."""

    answer: dict[str, Any]
    use: Callable[[Any], Any]


NOTHING: dict[str, Any] = {"problems": []}
CASES: dict[RequestType, Case] = {
    job.StatusRequest: Case(STATUS, use_status),
    job.EvidenceRequest: Case({**STATUS, "evidence": EVIDENCE}, use_evidence),
    launch.PrepareRequest: Case({"facts": FACTS}, use_facts),
    env.PushEnvRequest: Case({"made": True, "tool": "uv", "python": "3.12.1", "seconds": 2.5}, use_push),
    launch.BeforeRequest: Case(NOTHING, repr),
    launch.StartRequest: Case({"started": ["agent"]}, lambda answer: check_shown(answer.started)),
    launch.CommitRequest: Case({"started": ["agent"]}, lambda answer: check_shown(answer.started)),
    job.EndRanksRequest: Case({"asked": 2}, lambda answer: check_shown(str(answer.asked))),
    job.StopRequest: Case({**STOPPED, "status": STATUS}, use_stopped),
    job.SignalRequest: Case(SIGNALLED, use_signalled),
    job.CheckpointRequest: Case({**CHECKPOINT, "files": [CHECKPOINT_FILE]}, use_checkpoint),
    job.ForgetRequest: Case(NOTHING, repr),
    launch.RollbackRequest: Case(STOPPED, lambda answer: check_shown(answer.left)),
    job.LogsRequest: Case({"lines": [LINE], "offsets": {"/x": 3}, "past": True, "end": STATUS}, use_lines),
    doctor.ClockRequest: Case({"time": 5.0}, lambda answer: Clock(answer.time - 1.0, 1.0)),
    doctor.ProbeRequest: Case(PROBE, use_probe),
    doctor.ConnectivityRequest: Case(CONNECTIVITY, use_connectivity),
    stacks.StacksRequest: Case(STACKS, use_stacks),
    profile.ProfileRequest: Case(NOTHING, repr),
    profile.ProfileResultRequest: Case(
        {"ranks": [PROFILED, {"rank": 1, "pid": 8, "problem": "no probe"}]}, use_profiles
    ),
    profile.TraceChunkRequest: Case({"data": "AAAA"}, lambda answer: check_shown(answer.data)),
    profile.RemoveTracesRequest: Case(NOTHING, repr),
    load.LoadRequest: Case({"load": LOAD}, use_load),
    load.GpuMemoryRequest: Case({"held": [{"index": 0, "memory_mib": 5.0, "by": "7 (python)"}]}, use_gpu_memory),
    load.JobLoadRequest: Case({"load": LOAD}, use_load),
    sync.WorkdirRequest: Case({"shared": True, "problems": []}, lambda answer: answer.shared is True),
    sync.FilesRequest: Case({"checked": 3, "missing": 1, "differing": 0, "names": ["x"]}, use_files),
    run.RunRequest: Case({"out": ["a"], "err": ["b"], "end": RUN_END}, use_run),
    run.EndRunRequest: Case({"out": ["a"], "end": {**RUN_END, "stopped": True, "left": ["7 (x)"]}}, use_run),
    pull.FindFilesRequest: Case({"matches": [FILE_MATCH], "unreadable": ["/x"]}, use_found),
    pull.FileDigestsRequest: Case({"digests": ["0123"]}, lambda answer: check_shown(answer.digests)),
    calls.OutcomesRequest: Case({"ranks": [OUTCOME]}, use_outcomes),
    calls.ChunkRequest: Case({"data": "AAAA"}, lambda answer: check_shown(answer.data)),
    forward.ListenersRequest: Case(
        {"listeners": [{"port": 6006, "address": "::1", "pid": 7, "command": "tensorboard"}]}, use_listeners
    ),
    slurm.SlurmSubmitRequest: Case({"slurm_id": "7"}, lambda answer: check_shown(answer.slurm_id)),
    slurm.SlurmStatusRequest: Case(SLURM, use_slurm_status),
    slurm.SlurmEvidenceRequest: Case(
        {**SLURM, "evidence": [GATHERED, GATHERED], "batch": "srun: error"}, use_slurm_evidence
    ),
    slurm.SlurmStopRequest: Case({**STOPPED, "before": "RUNNING"}, use_slurm_stop),
    slurm.SlurmForgetRequest: Case(NOTHING, repr),
    slurm.SlurmStacksRequest: Case(
        {"nodes": [{"rank": 0, "host": "a", "answer": STACKS}], "said": ""}, use_slurm_stacks
    ),
    slurm.SlurmSignalRequest: Case(
        {"nodes": [{"rank": 0, "host": "a", "answer": SIGNALLED}], "said": ""}, use_slurm_signalled
    ),
    slurm.SlurmCheckpointRequest: Case({**CHECKPOINT, "files": [CHECKPOINT_FILE]}, use_checkpoint),
    slurm.SlurmLogsRequest: Case(
        {"node": 0, "lines": [LINE], "offsets": {}, "seen": SLURM, "past": True}, use_slurm_lines
    ),
}
each_request = pytest.mark.parametrize("kind", request_types(), ids=lambda kind: str(kind.__name__))


def receive(kind: RequestType, answer: dict[str, Any]) -> list[Any]:
    """Send a request of this type to a node that gives this answer; return the decoded answer."""
    session, request = Session(NODE, RecordedChannel(frame({**answer, "of": 1}))), without_values(kind)
    if kind not in STREAMING:
        return [session.request(request, 5)]
    session.post(request)
    return session.read_frames()


@each_request
def test_a_valid_answer_is_accepted_and_can_be_shown(kind: RequestType) -> None:
    answer, use = CASES[kind]
    (received,) = receive(kind, answer)
    assert isinstance(received, kind.ANSWER)
    use(received)


def test_requests_that_differ_in_their_answer_have_different_names() -> None:
    answers: dict[str, set[type[Any]]] = {}
    for kind in request_types():
        answers.setdefault(operation(kind), set()).add(kind.ANSWER)
    assert [name for name, kinds in answers.items() if len(kinds) > 1] == []


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all parts of a value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, part in parts for found in places(part, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], part: Any) -> Any:
    """Return a value with one part replaced, or removed if the replacement is ()."""
    made = copy.deepcopy(value)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    if part == ():
        del inner[path[-1]]
    else:
        inner[path[-1]] = part
    return made


PLACES = {kind: places(case.answer)[1:] for kind, case in CASES.items()}
PART = st.one_of(
    JSON, st.just(()), st.sampled_from(["\x1b]0;x\x07", "../../x", "9" * 5000, "10.0.0.1", 10**400, -1, 256, 1e300, {}])
)
CHANGES = st.lists(st.tuples(st.integers(0, 10_000), PART), min_size=1, max_size=2)


@each_request
@fuzzed(CHANGES)
def test_a_changed_answer_is_rejected_or_can_be_shown(kind: RequestType, changes: list[tuple[int, Any]]) -> None:
    answer, use = CASES[kind]
    for place, part in changes:
        try:
            answer = changed(answer, PLACES[kind][place % len(PLACES[kind])], part)
        except (KeyError, TypeError, IndexError):  # the first change removed the path of the second one
            continue
    received: list[Any] = []
    error = refusal(HostError, lambda: received.extend(receive(kind, answer)))
    assert "\x1b" not in str(error)
    assert (error is None) is (len(received) == 1)
    for each in received:
        use(each)


@fuzzed(st.lists(st.fixed_dictionaries({"what": st.text(max_size=9), "fix": st.text(max_size=9)}), max_size=99))
def test_the_problems_of_a_node_are_a_short_nonempty_error(problems: list[dict[str, str]]) -> None:
    error = refusal(HostError, lambda: receive(job.StatusRequest, {"problems": problems}))
    assert error is not None
    assert error.message.splitlines()
    assert len(error.message.split("\n  fix: ")) <= 51
    if problems and all(each["what"].isprintable() and each["what"] for each in problems):
        assert isinstance(error, NodeError)


# Eight threads decode an answer with a type of 30 structs that none has decoded before, five times.
_THREADS_DECODE = """
import json, sys, threading
import msgspec
from torchfab.transport import messages

sys.setswitchinterval(1e-6)
ANSWER = json.dumps({f"f{n}": {"a": {"x": 1}, "b": ["y"], "c": 3} for n in range(30)}).encode()
FIELDS = [("a", dict[str, int], {}), ("b", list[str], []), ("c", int | None, None)]

def decode(kind, barrier, decoded):
    barrier.wait()
    decoded.append(messages.decode(ANSWER, kind))

for _ in range(5):
    parts = [(f"f{n}", msgspec.defstruct(f"Part{n}", FIELDS)) for n in range(30)]
    kind, barrier, decoded = msgspec.defstruct("Answer", parts), threading.Barrier(8), []
    threads = [threading.Thread(target=decode, args=(kind, barrier, decoded)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 8 and all(each.f29.c == 3 for each in decoded)
"""


def test_threads_that_decode_a_new_type_at_once_do_not_crash() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _THREADS_DECODE],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")

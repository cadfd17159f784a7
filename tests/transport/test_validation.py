"""What nodes answer: what is true fits, and with any part of it exchanged it is refused, or can be told."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import strategies as st

from tests.runtimes.slurm.test_runtime import LOGIN
from tests.runtimes.slurm.test_state import RECORD
from tests.support import fuzzed, refusal
from tests.transport.test_validation_fuzz import JSON, NODE, Spoken, frame
from torchfab.commands import stop
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core import status
from torchfab.core.errors import HostError, TorchfabError
from torchfab.core.specs import Node
from torchfab.doctor import collect, consistency, launch_warnings, render
from torchfab.doctor.model import CheckRequirements, Clock, NodeReport, Report
from torchfab.monitoring import host_load
from torchfab.runtimes import tmux, tmux_logs
from torchfab.runtimes.slurm import runtime
from torchfab.stacks import report as stacks_page
from torchfab.stacks.model import StackDump
from torchfab.stacks.model import from_answer as stacks_of
from torchfab.sync import results
from torchfab.transport import validation
from torchfab.transport.pool import Answer, problem_in
from torchfab.transport.session import Session
from torchfab.why import diagnosis, evidence
from torchfab.why import report as page

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
    "glance": {"disk": PLACE, "script": "abcdef", "holders": [{"pid": 3, "memory_mib": None}]},
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
CHECKUP = {
    "machine": {"hostname": "a", "boot_id": "b", "network": "n", "own_addresses": ["127.0.1.1"], "infiniband": True},
    "python": {"python": "3.12.1", "path": "/p", "torch": "2.13.0", "cuda": "12.4", "nccl": "2.2"},
    "gpus": {"devices": 2, "driver": "550", "cuda": "12.4", "gpus": [GPU], "problem": "", "xids": [XID]},
    "tmux": {"version": "3.1", "oldest": "3.2"},
    "places": {"node_dir": PLACE, "workdir": PLACE, "tmp": PLACE, "shm": PLACE},
    "limits": {"files": 1000, "locked": 65536, "processes": None},
    "interfaces": [{"name": "eth0", "up": True, "mtu": 1500, "addresses": ["10.0.0.1"]}],
    "environment": {"NCCL_SOCKET_IFNAME": "eth9"},
    "jobs": [{"job_id": "x-1", "processes": 2, "supervised": False, "example": "9 (x)"}],
    "code": {"by": "git", "files": 3, "digest": "0123456789abcdef", "whole": True},
    "port": {"port": 29400, "greeting": "0011"},
}
CONNECTION = {"outcome": "stranger", "why": "", "address": "10.0.0.1", "seconds": 0.1}
WAY = {
    "addresses": ["10.0.0.1"],
    "resolve_s": 0.1,
    "source": "10.0.0.1",
    "connection": CONNECTION,
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
STOPPED = {"asked": 1, "killed": ["9 (x)"], "left": [], "seconds": 0.5}
OF_SLURM_RECORD = dataclasses.replace(
    RECORD, folder=Path("/nowhere"), min_nodes=2, details={"slurm_id": "7", "folder": "/x", "login": LOGIN}
)
CONFIRMED = dataclasses.replace(RECORD, folder=Path("/nowhere"))
REQUEST = {"follow": False, "lines": None, "ranks": None, "grep": None}


def told(*values: Any) -> None:
    """Make what is printed, and look for what would steer a terminal in it."""
    text = "\n".join(value if isinstance(value, str) else json.dumps(value, default=str) for value in values)
    assert not [sign for sign in text if (ord(sign) < 32 and sign not in "\t\n") or 127 <= ord(sign) < 160]
    assert not re.search(r"\\u00(?:0|1|7f|8|9)", text)  # in JSON they are written so


def of_job(found: status.JobStatus) -> None:
    told(status.table_rows(found), status.as_json("x", found), str(found.first_failure))
    assert found.exit_code is None or 0 <= found.exit_code < 256


def use_status(answer: Mapping[str, Any]) -> None:
    of_job(status.JobStatus((status.from_answer(NODE, answer, 9, 10),), 1))


def use_stopped(answer: Mapping[str, Any]) -> None:
    report = tmux._stop_report(CONFIRMED, NODE, Answer(answer, 9.0, 10.0))
    assert report.status
    of_job(status.JobStatus((report.status,), 1))
    told(stop._stop_summary(report))


def use_evidence(answer: Mapping[str, Any]) -> None:
    found = evidence.evidence_from_answer(NODE, answer, 9, 10)
    whole = diagnosis.diagnose(evidence.Evidence("x", 1.0, status.JobStatus((found.status,), 1), (found,)))
    told(page.render(whole), page.as_json(whole))


def use_facts(answer: Mapping[str, Any]) -> None:
    prepared, reasons = tmux.Prepared(ConnectionSettings()), dict[str, TorchfabError]()
    tmux._store_answer(prepared, NODE, answer, reasons)
    assert not reasons
    told(*(render.render_finding(each) for each in launch_warnings.warnings([NODE], prepared.reported_facts, {})))


def use_doctor(**values: Any) -> None:
    other = NodeReport(Node(1, "other"), CHECKUP, WAY, Clock(0.0, 0.1))
    wanted = CheckRequirements("/w", "python", "/n", names=("train.py",), digest="0")
    for nodes in (
        (NodeReport(NODE, **values), other),
        (dataclasses.replace(other, node=NODE), NodeReport(other.node, **values)),
    ):
        found = Report(nodes, collect.findings(nodes, wanted, ConnectionSettings()), 1.0)
        told(render.render_report(found), render.as_json(found))
        consistency.ranks_to_list_files(nodes)


def use_stacks(answer: Mapping[str, Any]) -> None:
    dump = StackDump((stacks_of(NODE, answer),))
    told(
        stacks_page.render("x", dump, True, True), stacks_page.render("x", dump), stacks_page.as_json("x", dump, False)
    )


def use_load(answer: Mapping[str, Any]) -> None:
    view = host_load.HostLoad(NODE, answer.get("load"))
    for views in ((view,), (view,) * 40):
        snapshot = host_load.Snapshot(9.0, views, "x", frozenset({0}), 1.0, 1)
        told(host_load.render(snapshot), host_load.as_json(snapshot))


def use_lines(answer: Mapping[str, Any]) -> None:
    list(tmux_logs._NodeLogs(NODE).events(answer))


def use_files(answer: Mapping[str, Any]) -> None:
    counts = {name: answer[name] for name in ("checked", "missing", "differing")}
    result = results.SyncResult(NODE, False, **counts, names=tuple(answer["names"]))
    told(*results.summary_lines([result], 3, 1.0), results.as_json([result], {}, 3))


def of_slurm(function: Callable[..., Any], *arguments: Any) -> Callable[[Mapping[str, Any]], Any]:
    """Ask the runtime, to which the answer is played."""

    def use(answer: Mapping[str, Any]) -> Any:
        with mock.patch.object(runtime, "_open", return_value=Session(NODE, Spoken(frame({**answer, "of": 1})))):
            return function(OF_SLURM_RECORD, *arguments)

    return use


def use_slurm_status(answer: Mapping[str, Any]) -> None:
    of_job(of_slurm(runtime.status)(answer))


def use_slurm_evidence(answer: Mapping[str, Any]) -> None:
    whole = diagnosis.diagnose(of_slurm(runtime.evidence)(answer))
    told(page.render(whole), page.as_json(whole))


def use_slurm_stacks(answer: Mapping[str, Any]) -> None:
    if not answer.get("wants"):
        dump = of_slurm(runtime.stacks, {"timeout_s": 1.0})(answer)
        told(stacks_page.render("x", dump))


def use_slurm_lines(answer: Mapping[str, Any]) -> None:
    list(runtime._JobLogs(OF_SLURM_RECORD, REQUEST).events(NODE, answer))


TRUE: dict[str, tuple[Mapping[str, Any], Callable[[Mapping[str, Any]], Any]]] = {
    "status": (STATUS, use_status),
    "evidence": ({**STATUS, "evidence": EVIDENCE}, use_evidence),
    "prepare": ({"facts": FACTS}, use_facts),
    "start": ({"started": ["agent"]}, len),
    "commit": ({"started": ["agent"]}, len),
    "stop": ({**STOPPED, "status": STATUS}, use_stopped),
    "rollback": (STOPPED, len),
    "logs": ({"lines": [LINE], "offsets": {"/x": 3}, "past": True, "end": STATUS}, use_lines),
    "clock": ({"time": 5.0}, lambda answer: Clock(answer["time"] - 1.0, 1.0)),
    "checkup": (CHECKUP, lambda answer: use_doctor(probe=answer, connectivity=WAY, clock=Clock(0.0, 0.1))),
    "reach": (WAY, lambda answer: use_doctor(probe=CHECKUP, connectivity=answer)),
    "stacks": (STACKS, use_stacks),
    "load": ({"load": LOAD}, use_load),
    "tree_look": ({"shared": True, "problems": []}, lambda answer: answer["shared"]),
    "tree_check": ({"checked": 3, "missing": 1, "differing": 0, "names": ["x"]}, use_files),
    "slurm_submit": ({"slurm_id": "7"}, len),
    "slurm_status": (SLURM, use_slurm_status),
    "slurm_evidence": ({**SLURM, "evidence": [GATHERED, GATHERED], "batch": "srun: error"}, use_slurm_evidence),
    "slurm_stop": ({**STOPPED, "before": "RUNNING"}, of_slurm(runtime.stop, 1.0)),
    "slurm_stacks": ({"nodes": [{"rank": 0, "host": "a", "answer": STACKS}], "said": ""}, use_slurm_stacks),
    "slurm_logs": ({"node": 0, "lines": [LINE], "offsets": {}, "seen": SLURM, "past": True}, use_slurm_lines),
}


@pytest.mark.parametrize("op", validation.SHAPES)
def test_what_is_true_fits_and_can_be_told(op: str) -> None:
    answer, use = TRUE[op]
    assert validation.is_one(answer, op)
    use(answer)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Give the ways to all parts of a value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, part in parts for found in places(part, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], part: Any) -> Any:
    """Give a value with another part, or without it where that is ()."""
    made = copy.deepcopy(value)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    if part == ():
        del inner[path[-1]]
    else:
        inner[path[-1]] = part
    return made


PLACES = {op: places(answer)[1:] for op, (answer, _) in TRUE.items()}
PART = st.one_of(
    JSON, st.just(()), st.sampled_from(["\x1b]0;x\x07", "../../x", "9" * 5000, "10.0.0.1", 10**400, -1, 256, 1e300, {}])
)
CHANGES = st.lists(st.tuples(st.integers(0, 10_000), PART), min_size=1, max_size=2)


@pytest.mark.parametrize("op", validation.SHAPES)
@fuzzed(CHANGES)
def test_an_answer_with_any_parts_exchanged_is_refused_or_can_be_told(op: str, changes: list[tuple[int, Any]]) -> None:
    answer, use = TRUE[op]
    for place, part in changes:
        try:
            answer = changed(answer, PLACES[op][place % len(PLACES[op])], part)
        except (KeyError, TypeError, IndexError):  # the first change has taken the place of the second one away
            continue
    session = Session(NODE, Spoken(frame({**answer, "of": 1})))
    session.post({"op": op})
    frames: list[dict[str, Any]] = []
    error = refusal(HostError, lambda: frames.extend(session.take()))
    assert "\x1b" not in str(error)
    for each in frames:
        problem = problem_in(each)
        if problem is None:
            use(each)


@fuzzed(st.lists(st.fixed_dictionaries({"what": st.text(max_size=9), "fix": st.text(max_size=9)}), max_size=99))
def test_what_a_node_complains_of_is_short_and_says_something(problems: list[dict[str, str]]) -> None:
    problem = problem_in({"problems": problems})
    assert problem is None or len(problem.message.split("\n  fix: ")) <= 51
    if validation.is_one({"problems": problems}, "status"):
        assert problem is not None
        assert problem.message.splitlines()

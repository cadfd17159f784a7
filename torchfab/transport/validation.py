"""What the answers of torchfab's program on a node look like, by what was asked: all that is read of them here.

A node that answers otherwise is told apart where its answer is taken in. What counts something has a bound, so that no
number that a node makes up keeps this machine busy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from torchfab.transport.schema import Judge, Only, Row, Span, fits, judge


def _is_address(value: Any) -> bool:
    from ipaddress import ip_address  # for `fab doctor` alone

    try:
        return isinstance(value, str) and bool(ip_address(value.partition("%")[0]))
    except ValueError:
        return False


_NONE, _NOTHING = type(None), Only()
_NUMBER, _WHOLE, _TIME = Span(-1e24, 1e24), Span(-1e18, 1e18, int), Span(-1e11, 1e11)
_MAYBE, _MAYBE_WHOLE, _WHEN = (_NUMBER, _NONE), (_WHOLE, _NONE), (_TIME, _NONE)
_RANK_NUMBER, _PORT = Span(0, 1e6, int), Span(0, 65535, int)
_CODE = (Span(-1e9, 1e9, int), _NONE)  # a script can print what looks like a report of torchrun's, with any code
_TEXT = re.compile(r".+", re.DOTALL)
_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,4}")
_LABEL = (_WHOLE, str)

# ---- how a job is

_RANK = {
    **dict.fromkeys(("rank", "local_rank", "world_size"), _MAYBE_WHOLE),
    **dict.fromkeys(("pid", "start_time", "attempt"), _WHOLE),
    **dict.fromkeys(("started", "ended"), _WHEN),
    "code": _CODE,
}
_PROCESS = {
    **dict.fromkeys(("name", "reason"), str),
    "state": frozenset({"starting", "running", "succeeded", "failed", "stopped", "lost"}),
    **dict.fromkeys(("started", "ended"), _WHEN),
    "pid": _MAYBE_WHOLE,
    "code": _CODE,
    **dict.fromkeys(("signal", "warned"), (str, _NONE)),
    "ranks": [_RANK],
    "last_line": ({"time": _TIME, "text": str, "label": _LABEL}, _NONE),
    "reported": [{"rank": _WHOLE, "code": _CODE[0]}],
}
_STATUS = {"processes": [_PROCESS], "now": _TIME, "exists": bool, "stop_asked": _WHEN, "left?": [str]}
_STOPPED = {"asked": _NUMBER, "killed": [str], "left": [str], "seconds": _NUMBER}
_LINES = {"lines?": [Row((_LABEL, _TIME, str))], "offsets?": dict}
_END = {"asked?": (str, _NONE), "killed?": [str], "left?": [str], "error?": (str, _NONE), "oom_kills?": _NUMBER}
_PART = {"text": str, "time": _TIME, "line?": _WHOLE, "gap?": bool}
_GATHERED = {
    "logs?": [{"label": _LABEL, "path": str, "written": _TIME, "text?": str, "parts?": [_PART]}],
    "reports?": [Only({"label": _LABEL, "attempt": _WHOLE, "message": str, "traceback": str})],
    "ends?": {"*": _END},
}
_EVIDENCE = {
    **_GATHERED,
    "kernel?": {"lines?": [Row((_TIME, str))], "unread?": str},
    "disks?": [Only({"path": str, "free": _MAYBE, "size": _MAYBE, "free_files?": _MAYBE, "read_only?": bool})],
    "gpus?": _MAYBE_WHOLE,
    "boot_id?": str,
    "halted?": [str],
}

# ---- what phase one, and doctor, see of a machine

_PLACE = {
    **dict.fromkeys(("path", "filesystem"), str),
    **dict.fromkeys(("exists", "enterable"), bool),
    **dict.fromkeys(("free", "size"), _NUMBER),
    "free_files": _MAYBE,
    **dict.fromkeys(("token?", "problem?"), str),
}
_FACTS = {
    **dict.fromkeys(("folder", "hostname"), str),
    "gpus": Span(0, 1024, int),
    "cpus": Span(0, 1e6, int),
    "time": _TIME,
    "port": (_PORT, _NONE),
    "is_root": bool,
    "versions": {"*": str},
    "glance?": {"disk?": (_PLACE, _NOTHING), "script?": str, "holders?": [{"pid": _WHOLE}]},
}
_GPU = {
    **dict.fromkeys(("bus", "name", "uuid", "sick", "repair"), str),
    "ecc": _MAYBE_WHOLE,
    "mig": bool,
    "slowdown": [str],
    "processes": [{"pid": _MAYBE_WHOLE, "name": str, "memory_mib": _MAYBE_WHOLE}],
}
_GPUS = {
    "devices": _WHOLE,
    "gpus": [_GPU],
    **dict.fromkeys(("problem?", "driver?", "cuda?"), str),
    "missing?": bool,
    "xids?": [str],
}
_PARTS = {
    "machine": {
        **dict.fromkeys(("hostname", "network"), str),
        "own_addresses": [_is_address],
        "infiniband": bool,
    },
    "python": ({"problem": _TEXT}, dict.fromkeys(("python", "torch", "cuda", "nccl"), str)),
    "gpus": _GPUS,
    "tmux": ({"problem": _TEXT}, {"version": _VERSION, "oldest": _VERSION}),
    "places": {"*": _PLACE},
    "limits": dict.fromkeys(("files", "locked", "processes"), _MAYBE_WHOLE),
    "interfaces": [{"name": str, "up": bool, "mtu": _MAYBE_WHOLE, "addresses": [str]}],
    "environment": {"*": str},
    "jobs": [{"job_id": str, "processes": _WHOLE, "supervised": bool, "example": str}],
    "code": (_NOTHING, {"digest": str, "whole": bool}),
    "port": (_NOTHING, {"port": _PORT, "problem": _TEXT}, {"port": _PORT, "greeting": str}),
}
_CHECKUP = {f"{name}?": ({"failed": str}, shape) for name, shape in _PARTS.items()}
_OUTCOME = frozenset({"connected", "refused", "timeout", "rejected", "stranger", "failed"})
_WAY = {
    "addresses": [_is_address],
    "source?": str,
    "connection?": {"outcome": _OUTCOME, "why": str, "address": str, "seconds": _NUMBER},
    "sees": {"*": bool},
    "files?": {"*": str},
}

# ---- stacks, and load

_FRAME = (Row((str, str, _WHOLE)), Row((str, str, _WHOLE, str)))
_STACK = {
    "process": str,
    "rank": _MAYBE_WHOLE,
    "pid": _WHOLE,
    "ended": _WHEN,
    "code": _CODE,
    **dict.fromkeys(("state?", "waits_in?", "by?", "problem?", "signal?"), str),
    "cpu?": _NUMBER,
    "tracer?": _WHOLE,
    "threads?": [{"name": str, "active": bool, "frames": [_FRAME]}],
}
_STACKS = {
    **dict.fromkeys(("machine", "spy"), str),
    "rights": {"ptrace_scope?": str, "cap_sys_ptrace?": bool, "uid?": _WHOLE},
    "ranks": [_STACK],
    "wants?": bool,
}
_GPU_LOAD = {
    "index": _WHOLE,
    **dict.fromkeys(("name", "sick"), str),
    **dict.fromkeys(("utilization", "power", "power_limit", "memory", "memory_total", "temperature"), _MAYBE),
    "processes": [{"pid": _WHOLE, "memory": _MAYBE, "name": str}],
}
_JOB_LOAD = {
    "status": _STATUS,
    **dict.fromkeys(("step", "steps"), _MAYBE_WHOLE),
    **dict.fromkeys(("steps_s", "lines_s", "silent_s"), _MAYBE),
}
_LOAD = {
    **dict.fromkeys(
        ("cpu", "memory", "memory_total", "load", "received", "sent", "disk_read", "disk_written"), _NUMBER
    ),
    "cpus": _WHOLE,
    "gpus": [_GPU_LOAD],
    "problem": str,
    "job": (_JOB_LOAD, _NONE),
}

# ---- Slurm

_JOB_OF_SLURM = {**dict.fromkeys(("state", "why", "exit", "limit"), str), "restarts?": _WHOLE, "start?": str}
_SLURM = {
    "slurm": ({"error": str}, {"state": frozenset({""})}, _JOB_OF_SLURM),
    "nodes": [{"rank": _RANK_NUMBER, "host": str, "status": (_STATUS, _NONE)}],
    "exists": bool,
    "stop_asked": _WHEN,
    "said": str,
}
_SLURM_STACKS = (
    {"wants": bool, "machine": str},
    {"nodes": [{"rank": _RANK_NUMBER, "host": str, "answer": (_STACKS, _NONE)}], "said": str},
)

SHAPES: Mapping[str, Any] = {
    "status": _STATUS,
    "evidence": {**_STATUS, "evidence": _EVIDENCE},
    "prepare": {"facts": _FACTS},
    "start": {"started": [str]},
    "commit": {"started?": [str]},
    "stop": {**_STOPPED, "status": _STATUS},
    "rollback": _STOPPED,
    "logs": {**_LINES, "end?": _STATUS},
    "clock": {"time": _TIME},
    "checkup": _CHECKUP,
    "reach": _WAY,
    "stacks": _STACKS,
    "load": {"load?": _LOAD},
    "tree_look": {"shared": bool},
    "tree_check": {**dict.fromkeys(("checked", "missing", "differing"), _WHOLE), "names": [str]},
    "slurm_submit": {"slurm_id": re.compile(r"[0-9A-Za-z_.+-]{1,64}")},
    "slurm_status": _SLURM,
    "slurm_evidence": {**_SLURM, "evidence": [_GATHERED], "batch": str},
    "slurm_stop": {"before": str, **_STOPPED},
    "slurm_stacks": _SLURM_STACKS,
    "slurm_logs": {**_LINES, "node?": _RANK_NUMBER, "seen?": _SLURM, "end?": _SLURM},
}
_STREAMS = frozenset({"logs", "slurm_logs", "load"})  # what is in a frame beside a problem is read too
_PROBLEMS = [{"what": _TEXT, "fix": str}]


def is_one(answer: Mapping[str, Any], op: str) -> bool:
    """Say whether an answer is one to this request: of its shape, or a list of problems."""
    if "problems" in answer and not fits(answer["problems"], _PROBLEMS):
        return False
    return (bool(answer.get("problems")) and op not in _STREAMS) or _judge_of(op)(answer)


@lru_cache(None)
def _judge_of(op: str) -> Judge:
    return judge(SHAPES.get(op, {}))

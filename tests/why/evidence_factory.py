"""Build evidence for tests: pass the relevant values, the others have defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from torchfab.core import status
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, State, Verdict
from torchfab.transport.messages.job import EvidenceAnswer
from torchfab.why import diagnosis, evidence
from torchfab.why.evidence import Evidence, NodeEvidence, SchedulerReason

LAUNCHED = 1000.0


def rank(number: int, code: int | None = None, ended: float | None = None, **more: Any) -> dict[str, Any]:
    """Return a rank as a node reports it. With a code it has ended, by default 60 s after the launch."""
    end = ended if code is None else ended or LAUNCHED + 60
    base = {"rank": number, "local_rank": 0, "world_size": 2, "attempt": 0, "pid": 100 + number, "start_time": 1}
    return {**base, "started": LAUNCHED + 1, "ended": end, "code": code, **more}


def process(state: str, *ranks: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return a process as a node reports it: torchrun with some ranks."""
    ended = None if state in ("running", "lost", "starting") else LAUNCHED + 61
    base = {"name": "agent", "state": state, "reason": "", "pid": 50, "started": LAUNCHED + 0.5, "ended": ended}
    code = {"failed": 1, "succeeded": 0, "stopped": -15}.get(state)
    rest = {"code": code, "signal": None, "warned": None, "last_line": None, "reported": [], "ranks": list(ranks)}
    return {**base, **rest, **more}


def log(label: int | str, text: str, written: float = LAUNCHED + 60, path: str = "stderr.log") -> dict[str, Any]:
    """Return the end of a log as a node reports it."""
    return {"label": label, "path": f"/jobs/{label}/{path}", "size": len(text), "written": written, "text": text}


def node(
    node_rank: int,
    processes: Sequence[Mapping[str, Any]],
    logs: Sequence[Mapping[str, Any]] = (),
    skew_s: float = 0.0,
    stop_asked: float | None = None,
    **more: Any,
) -> NodeEvidence:
    """Return the evidence of a node; all its times are on its own clock, which is `skew_s` ahead of the local one."""
    queried = LAUNCHED + 100
    report = {"kernel": {"lines": [], "unread": ""}, "logs": list(logs), **more}
    answer = {"processes": list(processes), "now": queried + skew_s, "exists": True, "stop_asked": stop_asked}
    made = Node(node_rank, f"node{node_rank + 1}")
    decoded = msgspec.convert({**answer, "evidence": report}, EvidenceAnswer)
    found = status.from_answer(made, decoded, queried, queried)
    return evidence.evidence_from_report(found, msgspec.to_builtins(decoded.evidence))


def unreachable(node_rank: int, reason: str = "no answer") -> NodeEvidence:
    """Return the evidence of a node that does not answer."""
    return NodeEvidence(status.NodeStatus(Node(node_rank, f"node{node_rank + 1}"), State.UNREACHABLE, reason))


def make_evidence(
    *nodes: NodeEvidence,
    said: tuple[SchedulerReason, ...] = (),
    events: tuple[Mapping[str, Any], ...] = (),
    verdict: Verdict | None = None,
) -> Evidence:
    """Return the evidence of a job on these nodes."""
    job = JobStatus(tuple(each.status for each in nodes), len(nodes), verdict)
    return Evidence("gpt2", LAUNCHED, job, nodes, said, events)


def diagnose_nodes(*nodes: NodeEvidence, **more: Any) -> diagnosis.Diagnosis:
    """Return the diagnosis of a job on these nodes."""
    return diagnosis.diagnose(make_evidence(*nodes, **more))

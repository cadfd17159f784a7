"""The tmux runtime: processes live in the private tmux server of each node.

A node is reached over SSH or, for `localhost`, through a local process.
"""

from __future__ import annotations

import itertools
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core import status as states
from torchfab.core.console import write_err
from torchfab.core.environment import SECRET_PATTERNS
from torchfab.core.errors import HostsFailedError, Interrupted, TorchfabError
from torchfab.core.inventory import fold
from torchfab.core.specs import Facts, Job, Node, NodePlan, Plan, Requirements, session_name
from torchfab.records import Record
from torchfab.runtimes import StopReport
from torchfab.runtimes.tmux_logs import address, follow
from torchfab.runtimes.tmux_stacks import stacks
from torchfab.transport.fanout import fan_out
from torchfab.transport.pool import Answer, problem_in, request_all
from torchfab.transport.session import Session
from torchfab.transport.ssh import connections, open_session
from torchfab.why import evidence as why
from torchfab.why.evidence import Evidence

__all__ = ["follow", "stacks"]  # and all that is defined here

NAME = "tmux"
_ROLLBACK_GRACE_S = 2.0
# What became of a launch that failed in a half of phase two, and was taken back.
_OUTCOMES = {"starting": "nothing was started", "confirming": "what had started was stopped again"}

Progress = Callable[[str, int, int], None]


@dataclass
class Prepared:
    """Nodes on which phase one has gone well: their open sessions, their facts, and the answers, by node rank."""

    settings: ConnectionSettings
    nodes: tuple[Node, ...] = ()
    sessions: dict[int, Session] = field(default_factory=dict)
    facts: dict[int, Facts] = field(default_factory=dict)
    told: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    asked: dict[int, tuple[float, float]] = field(default_factory=dict)  # when: by our clock, question and answer

    def close(self) -> None:
        """Hang up everywhere: what was prepared and not committed is rolled back by the nodes themselves."""
        for session in list(self.sessions.values()):  # after Ctrl-C, threads may still be at work
            session.close()


# ---- phase one


def prepare(
    job: Job,
    nodes: Sequence[Node],
    requirements: Requirements,
    settings: ConnectionSettings,
    write: bool,
    progress: Progress,
) -> Prepared:
    """Connect to every node, ask its facts, check it, and make the job's folder there. Nothing is started.

    Parameters
    ----------
    write : bool
        False for a dry run: facts and checks only.
    progress : callable
        Told the phase, how many nodes are done, and of how many.

    Raises
    ------
    HostsFailedError
        With one reason for each node that failed; what was prepared elsewhere is taken back.
    """
    opened = connections(nodes, settings)
    prepared = Prepared(settings, tuple(nodes))
    reasons: dict[str, TorchfabError] = {}
    patience_s = _patience_s(len(nodes), settings)

    def act(node: Node) -> Mapping[str, Any]:
        session = open_session(node, opened[node.rank], settings)
        prepared.sessions[node.rank] = session
        request = {**_prepare_request(job, node, nodes, requirements, write), "patience_s": patience_s}
        request["python_timeout_s"] = settings.prepare_timeout_s / 3
        begun = time.time()
        answer = session.ask(request, settings.prepare_timeout_s)
        prepared.asked[node.rank] = (begun, time.time())
        return answer

    try:
        for node, answer in fan_out(nodes, act, settings.fanout):
            _note_prepared(prepared, node, answer, reasons)
            progress("preparing", len(prepared.facts), len(nodes))
    except BaseException:  # Ctrl-C too
        prepared.close()
        raise
    if reasons:
        prepared.close()
        raise HostsFailedError(_failed_words(reasons, nodes, "nothing was started"), _in_order(reasons, nodes))
    return prepared


def _patience_s(nodes: int, settings: ConnectionSettings) -> int:
    """Return how many seconds a node may wait for our next word, when all others take as long as they may."""
    rounds = -(-nodes // settings.fanout)
    a_node_s = 5 * settings.connect_timeout_s + settings.prepare_timeout_s + settings.start_timeout_s
    return round(10 + rounds * a_node_s)


def _note_prepared(
    prepared: Prepared, node: Node, answer: Mapping[str, Any] | Exception, reasons: dict[str, TorchfabError]
) -> None:
    problem = problem_in(answer)
    if problem is not None:
        reasons[node.label] = problem
        return
    assert not isinstance(answer, Exception)
    told = answer["facts"]
    prepared.told[node.rank] = told
    known = ("folder", "gpus", "cpus", "port", "is_root", "versions")
    prepared.facts[node.rank] = Facts(**{name: told[name] for name in known})


def _prepare_request(
    job: Job, node: Node, nodes: Sequence[Node], requirements: Requirements, write: bool
) -> dict[str, Any]:
    first = nodes[0]
    return {
        "op": "prepare",
        "job_id": job.job_id,
        "session": session_name(job.name, node.rank),
        "node_rank": node.rank,
        "node_dir": job.node_dir,
        "workdir": job.workdir,
        "python": job.python,
        "script": job.script_path,
        "modules": _modules(job, node, requirements),
        "python_path": job.env.get("PYTHONPATH"),
        "installs": dict(requirements.installs),
        "programs": [vars(each) for each in requirements.programs if node.rank == 0 or not each.on_head_only],
        "master_addr": job.master_addr or first.address or first.host,
        "one_machine": len(nodes) == 1,
        "peers": [each.address or each.host for each in nodes[1:]] if requirements.peers and node.rank == 0 else [],
        "port": job.port if requirements.port and node.rank == 0 else None,
        "write": write,
    }


def _modules(job: Job, node: Node, requirements: Requirements) -> list[str]:
    of_head = () if node.rank else requirements.head_modules
    return [*requirements.modules, *of_head, *([job.module] if job.module else [])]


def _failed_words(reasons: Mapping[str, TorchfabError], nodes: Sequence[Node], outcome: str) -> str:
    return f"{len(reasons)} of {len(nodes)} hosts failed; {outcome}"


def _in_order(reasons: Mapping[str, TorchfabError], nodes: Sequence[Node]) -> dict[str, TorchfabError]:
    return {node.label: reasons[node.label] for node in nodes if node.label in reasons}


# ---- phase two


def start(plan: Plan, prepared: Prepared, progress: Progress) -> None:
    """Start everything that the plan says, on all nodes at once; if any fails, take down what has started.

    First every node brings up the supervisors of its processes, then all are told to let them begin: where one node
    cannot, no process has begun on any. The sessions stay open: the job runs now, and that is to be written down first.

    Raises
    ------
    HostsFailedError
        With one reason for each node that failed. Nothing of the job runs then, unless the message says where.
    """
    timeout_s = prepared.settings.start_timeout_s
    answer_s = timeout_s + min(timeout_s, 5)  # the node itself says what did not come in time
    posted: dict[int, int] = {}

    def bring_up(each: NodePlan) -> Mapping[str, Any]:
        return prepared.sessions[each.node.rank].ask(start_request(plan, each, timeout_s), answer_s)

    def let_begin(each: NodePlan) -> Mapping[str, Any]:
        posted[each.node.rank] = prepared.sessions[each.node.rank].post({"op": "commit"})
        return {}

    def confirm(each: NodePlan) -> Mapping[str, Any]:
        return prepared.sessions[each.node.rank].answer(posted[each.node.rank], answer_s)

    # All of a wave are told before any is waited for: the last begins as soon after the first as the messages leave.
    phases: Mapping[str, tuple[_Step, ...]] = {"starting": (bring_up,), "confirming": (let_begin, confirm)}
    try:
        for phase, wave in itertools.product(phases, plan.start_order):
            for step in phases[phase]:
                _take_step(phase, step, wave, plan, prepared, progress)
    except BaseException as error:  # Ctrl-C too
        problem = _say_what_is_left(error, _roll_back(plan, prepared), plan)
        if problem is None:
            raise
        raise problem from None


_Step = Callable[[NodePlan], Mapping[str, Any]]


def _take_step(
    phase: str, step: _Step, wave: Sequence[NodePlan], plan: Plan, prepared: Prepared, progress: Progress
) -> None:
    """Take one step on the nodes of a wave at once, or raise with the reasons of those on which it failed."""
    reasons: dict[str, TorchfabError] = {}
    nodes = [each.node for each in plan.nodes]
    for done, (each, answer) in enumerate(fan_out(wave, step, prepared.settings.fanout), 1):
        problem = problem_in(answer)
        if problem:
            reasons[each.node.label] = problem
        progress(phase, done - len(reasons), len(wave))
    if reasons:
        raise HostsFailedError(_failed_words(reasons, nodes, _OUTCOMES[phase]), _in_order(reasons, nodes))


def _say_what_is_left(error: BaseException, unsure: Sequence[str], plan: Plan) -> TorchfabError | None:
    """Return the error that says what is left of a launch that failed; None where that is nothing."""
    if not unsure:
        return None
    left = f"{fold(unsure)} did not confirm that nothing of it runs there"
    fix = f"it ends by itself once it notices; to make sure: fab stop {plan.job.name}"
    problem: TorchfabError
    if isinstance(error, HostsFailedError):
        words = _failed_words(error.reasons, [each.node for each in plan.nodes], left)
        problem = HostsFailedError(words, error.reasons, fix)
    elif isinstance(error, KeyboardInterrupt):
        problem = Interrupted(f"interrupted; {left}", fix)
    else:
        return None
    problem.unsure = tuple(unsure)
    return problem


def start_request(plan: Plan, each: NodePlan, timeout_s: float) -> dict[str, Any]:
    """Return what a node is asked in phase two."""
    processes = [
        {
            "name": process.name,
            "argv": list(process.argv),
            "env": dict(process.env),
            "secrets": dict(plan.job.secrets) if process.secrets else None,
            "cwd": plan.job.workdir,
            "rank": process.rank,
            "rank_logs": process.rank_logs,
            "folders": list(process.folders),
            "files": dict(process.files),
            "path": list(process.path),
        }
        for process in each.processes
    ]
    return {
        "op": "start",
        "session": session_name(plan.job.name, each.node.rank),
        "mask_key": plan.job.mask_key,
        "grace_s": plan.job.grace_s,
        "start_timeout_s": timeout_s,
        "secret_patterns": list(SECRET_PATTERNS),
        "processes": processes,
    }


def _roll_back(plan: Plan, prepared: Prepared) -> list[str]:
    """Stop what has started; return the hosts on which it may still run."""
    # A node that got no `commit` rolls back when we hang up; the request confirms that it did.
    request = {
        "op": "rollback",
        "job_id": plan.job.job_id,
        "node_dir": plan.job.node_dir,
        "grace_s": _ROLLBACK_GRACE_S,
    }

    timeout_s = _ROLLBACK_GRACE_S + min(15.0, 2 * prepared.settings.start_timeout_s)

    def act(each: NodePlan) -> Mapping[str, Any]:
        rank = each.node.rank
        more = {"node_rank": rank, "session": session_name(plan.job.name, rank)}
        return prepared.sessions[rank].ask({**request, **more}, timeout_s)

    unsure = []
    for each, answer in fan_out(plan.nodes, act, prepared.settings.fanout):
        if isinstance(answer, Exception) or answer.get("left") or answer.get("problems"):
            unsure.append(each.node.label)
    prepared.close()
    return [each.node.label for each in plan.nodes if each.node.label in unsure]


# ---- the life of a job


def _ask_all(
    record: Record, request: Mapping[str, Any], timeout_s: float, nodes: Sequence[Node] | None = None
) -> Iterator[tuple[Node, Answer | TorchfabError]]:
    """Ask every node of a job, or some, the same about it."""
    wanted = record.nodes if nodes is None else nodes
    return request_all(wanted, record.settings, lambda node: {**address(record, node), **request}, timeout_s)


def status(record: Record) -> states.JobStatus:
    """Ask every node how the job is there; one that does not answer is `unreachable`."""
    found: dict[int, states.NodeStatus] = {}
    for node, result in _ask_all(record, {"op": "status"}, record.settings.answer_timeout_s):
        found[node.rank] = _node_status(record, node, result)
    return states.JobStatus(tuple(found[node.rank] for node in record.nodes), record.min_nodes)


def _node_status(record: Record, node: Node, result: Answer | TorchfabError) -> states.NodeStatus:
    if isinstance(result, TorchfabError):
        return states.NodeStatus(node, "unreachable", result.message.splitlines()[0])
    return _cut_off(record, states.from_answer(node, result.value, result.asked, result.answered))


def _cut_off(record: Record, found: states.NodeStatus) -> states.NodeStatus:
    """Say of a node that has nothing of the job whether it took that back, as nobody told it to keep it."""
    taken_back = found.state == "lost" and not found.processes and not record.is_confirmed
    return replace(found, reason=states.CUT_OFF) if taken_back else found


def evidence(record: Record) -> Evidence:
    """Ask every node what it knows of how the job went there."""
    found: dict[int, why.NodeEvidence] = {}
    for node, result in _ask_all(record, {"op": "evidence"}, record.settings.answer_timeout_s):
        if isinstance(result, TorchfabError):
            found[node.rank] = why.NodeEvidence(_node_status(record, node, result))
        else:
            found[node.rank] = why.of_told(_node_status(record, node, result), result.value.get("evidence") or {})
    nodes = why.in_order(record.nodes, found)
    job = states.JobStatus(tuple(each.status for each in nodes), record.min_nodes)
    return Evidence(record.name, record.created, job, nodes, events=record.events())


def stop(record: Record, grace_s: float, nodes: Sequence[Node] | None = None) -> tuple[StopReport, ...]:
    """End the job on all its nodes, or on some: TERM, `grace_s` seconds, KILL, and proof that no process is left."""
    found: dict[int, StopReport] = {}
    timeout_s = grace_s + record.settings.answer_timeout_s
    for node, result in _ask_all(record, {"op": "stop", "grace_s": grace_s}, timeout_s, nodes):
        found[node.rank] = _stop_report(record, node, result)
    return tuple(found[rank] for rank in sorted(found))


def _stop_report(record: Record, node: Node, result: Answer | TorchfabError) -> StopReport:
    if isinstance(result, TorchfabError):
        return StopReport(node, error=result)
    told = result.value
    # The way of question and answer is what the node did not spend on stopping: its clock is known by that.
    asked = min(result.asked + told["seconds"], result.answered)
    now = _cut_off(record, states.from_answer(node, told["status"], asked, result.answered))
    return StopReport(node, told["asked"], tuple(told["killed"]), tuple(told["left"]), told["seconds"], status=now)


def forget(record: Record) -> dict[str, TorchfabError]:
    """Remove the job's folders from its nodes; return the nodes where that failed."""
    results = _ask_all(record, {"op": "forget"}, record.settings.answer_timeout_s)
    return {node.label: result for node, result in results if isinstance(result, TorchfabError)}


def machines(record: Record) -> list[tuple[Node, Mapping[str, Any] | None]]:
    """Return the nodes of a job, each with what names the job there."""
    return [(node, address(record, node)) for node in record.nodes]


def attach_argv(record: Record, node: Node, window: str) -> tuple[str, ...]:
    """Return the command that opens a terminal on one window of the job's session."""
    write_err("to leave it running: Ctrl-B, then D; Ctrl-C stops the process")
    target = f"={session_name(record.name, node.rank)}:" + (f"={window}" if window else "")
    tmux = ("tmux", "-L", "torchfab", "attach-session", "-t", target)
    if node.is_local:
        return tmux
    return (*ssh_argv(node, record.settings), "-t", "--", node.host, "exec " + shlex.join(tmux))


def ssh_argv(node: Node, settings: ConnectionSettings) -> tuple[str, ...]:
    """Return the OpenSSH client with the options that reach a node, without the host."""
    port = ("-p", str(node.port)) if node.port else ()
    user = ("-l", node.user) if node.user else ()
    return ("ssh", *settings.ssh_options, *port, *user)

"""The tmux runtime: processes run in a private tmux server (`tmux -L torchfab`) on each node.

A node is reached over SSH or, for `localhost`, through a local process.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.environment import SECRET_PATTERNS
from torchfab.core.errors import HostsFailedError, Interrupted, TorchfabError
from torchfab.core.inventory import fold
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Facts, Job, Node, NodePlan, Plan, Process, Requirements, search_path, session_name
from torchfab.core.status import CUT_OFF, JobStatus, NodeStatus, State, StatusReport, from_answer
from torchfab.records import Record
from torchfab.runtimes import CheckpointWatch, RankSignal, SignalReport, StopReport
from torchfab.runtimes.tmux_attach import attach_argv as attach_argv  # noqa: PLC0414  # part of the runtime
from torchfab.runtimes.tmux_attach import ssh_argv as ssh_argv  # noqa: PLC0414  # also for other runtimes
from torchfab.runtimes.tmux_logs import address
from torchfab.runtimes.tmux_logs import follow as follow  # noqa: PLC0414  # part of the runtime
from torchfab.transport.fanout import fan_out
from torchfab.transport.messages import launch
from torchfab.transport.messages.job import (
    CheckpointAnswer,
    CheckpointRequest,
    EndRanksRequest,
    EvidenceAnswer,
    EvidenceRequest,
    ForgetRequest,
    SignalAnswer,
    SignalRequest,
    StatusRequest,
    StopAnswer,
    StopRequest,
)
from torchfab.transport.messages.launch import (
    BeforeRequest,
    CommitAnswer,
    CommitRequest,
    NodeFacts,
    PrepareRequest,
    ProcessSpec,
    ProgramSpec,
    RollbackRequest,
    StartRequest,
)
from torchfab.transport.session import Pending, Session
from torchfab.transport.session_pool import Response, SessionPool, as_error, request_all
from torchfab.transport.ssh import NodeConnection, NodeGroup, open_session

if TYPE_CHECKING:
    from pathlib import Path

    from torchfab.profiling.model import JobProfile
    from torchfab.stacks.model import StackDump
    from torchfab.why.evidence import Evidence

NAME = "tmux"
_ROLLBACK_GRACE_S = 2.0
# Summaries of a launch that failed in the first or second half of phase two and was rolled back.
_OUTCOMES = {
    "running --before": "nothing was started",
    "starting": "nothing was started",
    "confirming": "the processes that had started were stopped again",
}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PreparedNode:
    """A node on which phase one succeeded.

    Parameters
    ----------
    node : Node
        The node.
    facts : NodeFacts
        The facts that it reported.
    sent, received : float
        When the request was sent and its answer received, by this machine's clock, in seconds since the epoch.
    """

    node: Node
    facts: NodeFacts
    sent: float
    received: float

    @property
    def plan_facts(self) -> Facts:
        """The facts that launchers use to plan."""
        facts = self.facts
        setup = facts.setup.changed if facts.setup else ()
        return Facts(facts.folder, facts.gpus, facts.cpus, facts.port, facts.is_root, facts.versions, setup)

    @property
    def plan_node(self) -> Node:
        """The node, with the interpreter that its setup has chosen."""
        python = self.facts.setup.python if self.facts.setup else ""
        return replace(self.node, python=python) if python else self.node

    @property
    def clock_ahead_s(self) -> float:
        """Seconds by which the node's clock is ahead of this machine's; known to within half a round trip."""
        return self.facts.time - (self.sent + self.received) / 2


@dataclass
class Prepared:
    """Nodes on which phase one succeeded.

    Parameters
    ----------
    settings : ConnectionSettings
        How the nodes are reached.
    nodes : tuple of Node
        All nodes of the job.
    sessions : dict of int to Session
        Open sessions, by node rank.
    answers : dict of int to PreparedNode
        The facts that the nodes reported, by node rank.
    """

    settings: ConnectionSettings
    nodes: tuple[Node, ...] = ()
    sessions: dict[int, Session] = field(default_factory=dict)
    answers: dict[int, PreparedNode] = field(default_factory=dict)

    @property
    def facts(self) -> list[Facts]:
        """The facts that launchers use to plan, in the order of node ranks."""
        return [self.answers[node.rank].plan_facts for node in self.nodes]

    def close(self) -> None:
        """Close all sessions. Nodes roll back by themselves a preparation that was not committed."""
        for session in list(self.sessions.values()):  # after Ctrl-C, threads may still add sessions
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
    """Connect to every node, read its facts, check it, and create the job's folder there. Nothing is started.

    Parameters
    ----------
    job : Job
        The job to launch.
    nodes : sequence of Node
        Its nodes.
    requirements : Requirements
        Modules, programs, peers and port that the launcher needs.
    settings : ConnectionSettings
        How the nodes are reached.
    write : bool
        False for a dry run: facts and checks only.
    progress : callable
        Called with the phase, the number of nodes that are done, and the number of all nodes.

    Returns
    -------
    Prepared
        The open sessions and the facts of all nodes.

    Raises
    ------
    HostsFailedError
        With one reason for each node that failed; the other nodes are rolled back.
    """
    group = NodeGroup(nodes, settings)
    prepared = Prepared(settings, tuple(nodes))
    reasons: dict[str, TorchfabError] = {}
    patience_s = _patience_s(len(nodes), settings, job)

    def prepare_node(connection: NodeConnection) -> PreparedNode:
        node = connection.node
        session = open_session(connection, settings)
        prepared.sessions[node.rank] = session
        request = _prepare_request(job, node, nodes, requirements, write, patience_s, settings)
        sent = time.time()
        answer = session.request(request, settings.prepare_timeout_s + request.setup_timeout_s)
        return PreparedNode(node, answer.facts, sent, time.time())

    try:
        for connection, result in group.as_completed(prepare_node):
            if isinstance(result, Exception):
                reasons[connection.node.label] = as_error(result)
            else:
                prepared.answers[connection.node.rank] = result
            progress("preparing", len(prepared.answers), len(nodes))
    except BaseException:  # also Ctrl-C
        prepared.close()
        raise
    if reasons:
        prepared.close()
        raise HostsFailedError(_failure_summary(reasons, nodes, "nothing was started"), _in_order(reasons, nodes))
    prepared.nodes = tuple(prepared.answers[node.rank].plan_node for node in nodes)
    return prepared


def _patience_s(nodes: int, settings: ConnectionSettings, job: Job) -> int:
    """Return for how many seconds a node waits for the next request, if all other nodes use up their timeouts first."""
    rounds = -(-nodes // settings.fanout)
    hooks_s = job.setup_timeout_s + (job.hook_timeout_s if job.before else 0)
    phases_s = settings.prepare_timeout_s + settings.start_timeout_s + hooks_s
    per_node_s = 5 * settings.connect_timeout_s + phases_s
    return round(10 + rounds * per_node_s)


def _prepare_request(
    job: Job,
    node: Node,
    nodes: Sequence[Node],
    requirements: Requirements,
    write: bool,
    patience_s: int,
    settings: ConnectionSettings,
) -> PrepareRequest:
    first, is_first, job = nodes[0], node.rank == 0, job.on(node)
    programs = [ProgramSpec(**vars(each)) for each in requirements.programs if is_first or not each.on_head_only]
    return PrepareRequest(
        job_id=job.job_id,
        session=session_name(job.name, node.rank),
        node_rank=node.rank,
        node_dir=job.node_dir,
        workdir=job.workdir,
        python=job.python,
        script=job.script_path,
        program=job.program,
        master_is_given=bool(job.master_addr),
        modules=_modules(job, node, requirements),
        python_path=job.env.get("PYTHONPATH"),
        installs=dict(requirements.installs),
        parser=requirements.parser if is_first else (),
        programs=programs,
        master_addr=job.master_addr or first.address or first.host,
        one_machine=len(nodes) == 1,
        peers=[each.address or each.host for each in nodes[1:]] if requirements.peers and is_first else [],
        port=job.port if requirements.port and is_first else None,
        write=write,
        patience_s=patience_s,
        python_timeout_s=settings.prepare_timeout_s / 3,
        setup=job.setup,
        setup_timeout_s=job.setup_timeout_s if job.setup else 0,
        python_is_default=job.python_is_default,
    )


def _modules(job: Job, node: Node, requirements: Requirements) -> list[str]:
    head_modules = () if node.rank else requirements.head_modules
    return [*requirements.modules, *head_modules, *([job.module] if job.module else [])]


def _failure_summary(reasons: Mapping[str, TorchfabError], nodes: Sequence[Node], outcome: str) -> str:
    return f"{len(reasons)} of {len(nodes)} hosts failed; {outcome}"


def _in_order(reasons: Mapping[str, TorchfabError], nodes: Sequence[Node]) -> dict[str, TorchfabError]:
    return {node.label: reasons[node.label] for node in nodes if node.label in reasons}


# ---- phase two


def start(plan: Plan, prepared: Prepared, progress: Progress) -> None:
    """Start all processes of the plan, on all nodes at once; if one fails, stop those that have started.

    First every node starts the supervisors of its processes; then all supervisors are released. If a node fails in the
    first half, no process has started on any node. The sessions stay open: the caller records the running job first.

    Parameters
    ----------
    plan : Plan
        The processes of each node, and the order in which nodes start.
    prepared : Prepared
        Result of `prepare`.
    progress : callable
        Called with the phase, the number of nodes that are done, and the number of nodes in the wave.

    Raises
    ------
    HostsFailedError
        With one reason for each node that failed. No process of the job is left running unless the message says so.
    """
    timeout_s = prepared.settings.start_timeout_s
    # Longer than the timeout on the node, whose own error says which process did not start in time.
    answer_s = timeout_s + min(timeout_s, 5)
    posted: dict[int, Pending[CommitAnswer]] = {}

    def start_supervisors(each: NodePlan) -> None:
        prepared.sessions[each.node.rank].request(start_request(plan, each, timeout_s), answer_s)

    def run_before(each: NodePlan) -> None:
        hook_s = plan.job.hook_timeout_s
        prepared.sessions[each.node.rank].request(before_request(plan, each, hook_s), hook_s + answer_s)

    def release(each: NodePlan) -> None:
        posted[each.node.rank] = prepared.sessions[each.node.rank].post(CommitRequest())

    def confirm(each: NodePlan) -> None:
        prepared.sessions[each.node.rank].wait(posted[each.node.rank], answer_s)

    # Send the release to all nodes of a wave before waiting for any answer: the last node then starts as soon after
    # the first as the messages leave.
    phases: dict[str, tuple[_Step, ...]] = {"running --before": (run_before,)} if plan.job.before else {}
    phases.update(starting=(start_supervisors,), confirming=(release, confirm))
    try:
        for phase, wave in itertools.product(phases, plan.start_order):
            for step in phases[phase]:
                _run_step(phase, step, wave, plan, prepared, progress)
    except BaseException as error:  # also Ctrl-C
        problem = _with_unconfirmed_hosts(error, _roll_back(plan, prepared), plan)
        if problem is None:
            raise
        raise problem from None


_Step = Callable[[NodePlan], None]


def _run_step(
    phase: str, step: _Step, wave: Sequence[NodePlan], plan: Plan, prepared: Prepared, progress: Progress
) -> None:
    """Run one step on all nodes of a wave at once; raise HostsFailedError with the reasons of the nodes that failed."""
    reasons: dict[str, TorchfabError] = {}
    nodes = [each.node for each in plan.nodes]
    for done, (each, result) in enumerate(fan_out(wave, step, prepared.settings.fanout), 1):
        if isinstance(result, Exception):
            reasons[each.node.label] = as_error(result)
        progress(phase, done - len(reasons), len(wave))
    if reasons:
        raise HostsFailedError(_failure_summary(reasons, nodes, _OUTCOMES[phase]), _in_order(reasons, nodes))


def _with_unconfirmed_hosts(error: BaseException, unsure: Sequence[str], plan: Plan) -> TorchfabError | None:
    """Return the error extended by the hosts on which the failed launch may still run; None if there are none."""
    if not unsure:
        return None
    left = f"{fold(unsure)} did not confirm that no process of it runs there"
    fix = f"it ends by itself once it notices the failure; to make sure: fab stop {plan.job.name}"
    problem: TorchfabError
    if isinstance(error, HostsFailedError):
        summary = _failure_summary(error.reasons, [each.node for each in plan.nodes], left)
        problem = HostsFailedError(summary, error.reasons, fix)
    elif isinstance(error, KeyboardInterrupt):
        problem = Interrupted(f"interrupted; {left}", fix)
    else:
        return None
    problem.uncertain_hosts = tuple(unsure)
    return problem


def start_request(plan: Plan, each: NodePlan, timeout_s: float) -> StartRequest:
    """Return the request that starts a node's processes in phase two.

    Parameters
    ----------
    plan : Plan
        The plan of the job.
    each : NodePlan
        The processes of one node.
    timeout_s : float
        Seconds within which the supervisors must have started.

    Returns
    -------
    StartRequest
        The request.
    """
    return StartRequest(
        session=session_name(plan.job.name, each.node.rank),
        mask_key=plan.job.mask_key,
        grace_s=plan.job.grace_s,
        start_timeout_s=timeout_s,
        secret_patterns=list(SECRET_PATTERNS),
        processes=[_process_spec(plan, each, process) for process in each.processes],
    )


def before_request(plan: Plan, each: NodePlan, timeout_s: float) -> BeforeRequest:
    """Return the request that runs `--before` on a node.

    Parameters
    ----------
    plan : Plan
        The plan of the job.
    each : NodePlan
        The processes of the node; the hook gets the environment of the first one.
    timeout_s : float
        Time limit of the hook, in seconds.

    Returns
    -------
    BeforeRequest
    """
    return BeforeRequest(
        command=plan.job.before,
        timeout_s=timeout_s,
        mask_key=plan.job.mask_key,
        secret_patterns=list(SECRET_PATTERNS),
        process=_process_spec(plan, each, each.processes[0]),
    )


def _process_spec(plan: Plan, each: NodePlan, process: Process) -> ProcessSpec:
    return ProcessSpec(
        name=process.name,
        argv=list(process.argv),
        env=dict(process.env),
        secrets=dict(plan.job.secrets) if process.secrets else None,
        cwd=plan.job.on(each.node).workdir,
        rank=process.rank,
        rank_logs=process.rank_logs,
        folders=list(process.folders),
        files=dict(process.files),
        path=list(search_path(plan.job.on(each.node), process)),
        python_path=list(process.python_path),
        after=plan.job.after,
        after_timeout_s=plan.job.hook_timeout_s,
    )


def _roll_back(plan: Plan, prepared: Prepared) -> list[str]:
    """Stop all processes that have started; return the hosts on which one may still run."""
    # A node that got no `commit` rolls back when the session closes. An explicit request also confirms the rollback.
    timeout_s = _ROLLBACK_GRACE_S + min(15.0, 2 * prepared.settings.start_timeout_s)

    def roll_back(each: NodePlan) -> launch.StopReport:
        rank = each.node.rank
        request = RollbackRequest(
            job_id=plan.job.job_id,
            node_dir=plan.job.on(each.node).node_dir,
            node_rank=rank,
            session=session_name(plan.job.name, rank),
            grace_s=_ROLLBACK_GRACE_S,
        )
        return prepared.sessions[rank].request(request, timeout_s)

    unsure = []
    for each, result in fan_out(plan.nodes, roll_back, prepared.settings.fanout):
        if isinstance(result, Exception) or result.left:
            unsure.append(each.node.label)
    prepared.close()
    return [each.node.label for each in plan.nodes if each.node.label in unsure]


# ---- operations on a running or ended job


def status(record: Record) -> JobStatus:
    """Request the status from every node; a node that does not answer is `unreachable`.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    JobStatus
        The status by node.
    """
    found: dict[int, NodeStatus] = {}
    timeout_s = record.settings.answer_timeout_s
    for node, result in request_all(
        record.nodes, record.settings, lambda node: StatusRequest(**address(record, node)), timeout_s
    ):
        found[node.rank] = _node_status(record, node, result)
    return JobStatus(tuple(found[node.rank] for node in record.nodes), record.min_nodes)


def _node_status(
    record: Record, node: Node, result: Response[StatusReport] | Response[EvidenceAnswer] | TorchfabError
) -> NodeStatus:
    if isinstance(result, TorchfabError):
        return NodeStatus(node, State.UNREACHABLE, result.message.splitlines()[0])
    return _explain_lost(record, from_answer(node, result.value, result.sent, result.received))


def _explain_lost(record: Record, found: NodeStatus) -> NodeStatus:
    """Set the reason of a lost node whose launch was never confirmed: the node rolled the job back."""
    rolled_back = found.state == "lost" and not found.processes and not record.is_confirmed
    return replace(found, reason=CUT_OFF) if rolled_back else found


def stacks(record: Record, request: Mapping[str, Any]) -> StackDump:
    """Request the stacks of all ranks from all nodes at once; see `tmux_stacks.stacks`.

    Parameters
    ----------
    record : Record
        The job.
    request : Mapping
        `ranks`, `native`, `timeout_s`, `signal`: as `torchfab.remote.stacks.dump.answer` takes them.

    Returns
    -------
    StackDump
        The stacks by node, and the errors of the nodes that did not answer.
    """
    from torchfab.runtimes import tmux_stacks

    return tmux_stacks.stacks(record, request)


def profile(record: Record, ranks: Sequence[int] | None, seconds: float, folder: Path) -> JobProfile:
    """Profile ranks at one instant; see `tmux_profile.profile`."""
    from torchfab.runtimes import tmux_profile

    return tmux_profile.profile(record, ranks, seconds, folder)


def evidence(record: Record) -> Evidence:
    """Collect evidence for `fab why` from every node.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    Evidence
        Logs, error files and status of every node; a node that does not answer has a status only.
    """
    from torchfab.why.evidence import Evidence, NodeEvidence, evidence_from_report, in_rank_order, search_limits

    found: dict[int, NodeEvidence] = {}
    timeout_s = record.settings.answer_timeout_s
    limits = search_limits(len(record.nodes), timeout_s)
    for node, result in request_all(
        record.nodes, record.settings, lambda node: EvidenceRequest(**address(record, node), **limits), timeout_s
    ):
        status_of_node = _node_status(record, node, result)
        if isinstance(result, TorchfabError):
            found[node.rank] = NodeEvidence(status_of_node)
        else:
            report = msgspec.to_builtins(result.value.evidence)
            found[node.rank] = evidence_from_report(status_of_node, report)
    nodes = in_rank_order(record.nodes, found)
    job = JobStatus(tuple(each.status for each in nodes), record.min_nodes)
    return Evidence(record.name, record.created, job, nodes, events=record.events(), world_size=record.fixed_world_size)


def stop(record: Record, grace_s: float, nodes: Sequence[Node] | None = None) -> tuple[StopReport, ...]:
    """Stop the job: SIGTERM, after `grace_s` seconds SIGKILL, then a check that no process is left.

    Parameters
    ----------
    record : Record
        The job.
    grace_s : float
        Seconds between SIGTERM and SIGKILL.
    nodes : sequence of Node, optional
        Stop it on these nodes only. Default: all.

    Returns
    -------
    tuple of StopReport
        One for each node, by rank.
    """
    targets = record.nodes if nodes is None else nodes
    begun, timeout_s = time.monotonic(), grace_s + record.settings.answer_timeout_s
    with SessionPool(targets, record.settings) as sessions:
        # End the ranks of all nodes before any launcher: the launcher of one node serves the ranks of others.
        first = dict(sessions.request(functools.partial(_end_ranks_request, record, grace_s), timeout_s))
        earlier_s = time.monotonic() - begun
        left_s = max(0.0, grace_s - earlier_s)
        results = sessions.request(lambda node: StopRequest(**address(record, node), grace_s=left_s), timeout_s)
        reports = {node.rank: _stop_report(record, node, result) for node, result in results}
    for node, answer in first.items():
        if isinstance(answer, Response) and reports[node.rank].error is None:
            report = reports[node.rank]
            signalled = max(int(answer.value.asked), report.signalled)
            reports[node.rank] = replace(report, signalled=signalled, seconds=report.seconds + earlier_s)
    return tuple(reports[rank] for rank in sorted(reports))


def _end_ranks_request(record: Record, grace_s: float, node: Node) -> EndRanksRequest:
    return EndRanksRequest(**address(record, node), grace_s=grace_s)


def _stop_report(record: Record, node: Node, result: Response[StopAnswer] | TorchfabError) -> StopReport:
    if isinstance(result, TorchfabError):
        return StopReport(node, error=result)
    report = result.value
    # The clock skew is derived from the round trip, which is the time that the node did not spend on stopping.
    sent = min(result.sent + report.seconds, result.received)
    now = _explain_lost(record, from_answer(node, report.status, sent, result.received))
    ranks = report.rank_ends
    return StopReport(
        node,
        int(report.asked),
        tuple(report.killed),
        tuple(report.left),
        report.seconds,
        status=now,
        ended_ranks=int(ranks.ended),
        killed_ranks=int(ranks.killed),
        ranks_s=float(ranks.seconds),
        unfinished_ranks=int(ranks.unfinished),
        writing=tuple(ranks.writing),
        proof=report.proof,
        cleared_files=int(report.cleared.files),
        cleared_bytes=int(report.cleared.bytes),
        cleared_folders=int(report.cleared.folders),
    )


def signal(record: Record, name: str, ranks: Sequence[int] | None) -> tuple[SignalReport, ...]:
    """Send a signal once to each running rank; to none if it would end one, or if a node does not answer.

    Parameters
    ----------
    record : Record
        The job.
    name : str
        Its name: `SIGUSR1`.
    ranks : sequence of int, optional
        Which ranks. None: all.

    Returns
    -------
    tuple of SignalReport
        One for each node, by rank.
    """
    chosen = None if ranks is None else list(ranks)
    reports: dict[int, SignalReport] = {}
    with SessionPool(record.nodes, record.settings) as sessions:
        for send in (False, True):
            if all(each.may_send for each in reports.values()):
                request = functools.partial(_signal_request, record, name, chosen, send)
                for node, result in sessions.request(request, record.settings.answer_timeout_s):
                    answer = result if isinstance(result, TorchfabError) else result.value
                    reports[node.rank] = signal_report(node, answer)
    return tuple(reports[rank] for rank in sorted(reports))


def _signal_request(record: Record, name: str, ranks: list[int] | None, send: bool, node: Node) -> SignalRequest:
    return SignalRequest(**address(record, node), signal=name, ranks=ranks, send=send)


def signal_report(node: Node, answer: SignalAnswer | TorchfabError) -> SignalReport:
    """Return the report of a node that was asked to signal its ranks.

    Parameters
    ----------
    node : Node
        The node.
    answer : SignalAnswer or TorchfabError
        Its answer, or the reason why there is none.

    Returns
    -------
    SignalReport
    """
    if isinstance(answer, TorchfabError):
        return SignalReport(node, error=answer)
    return SignalReport(node, tuple(RankSignal(each.rank, each.effect, each.sent) for each in answer.ranks))


class _CheckpointWatch:
    def __init__(self, record: Record) -> None:
        self.record = record
        self.sessions = SessionPool(record.nodes, record.settings)

    def find_changed(self, requests: Mapping[int, Mapping[str, Any]]) -> dict[Node, CheckpointAnswer | TorchfabError]:
        def request(node: Node) -> CheckpointRequest:
            return CheckpointRequest(**address(self.record, node), **requests[node.rank])

        nodes = [node for node in self.record.nodes if node.rank in requests]
        found = self.sessions.request(request, self.record.settings.answer_timeout_s, nodes)
        return {node: each.value if isinstance(each, Response) else each for node, each in found}

    def close(self) -> None:
        self.sessions.close()


def watch_checkpoints(record: Record) -> CheckpointWatch:
    """Open connections to all nodes of the job, to watch the files of its checkpoints.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    CheckpointWatch
        The caller closes it.
    """
    return _CheckpointWatch(record)


def forget(record: Record) -> dict[str, TorchfabError]:
    """Remove the job's folders from its nodes.

    Parameters
    ----------
    record : Record
        The job; it has ended.

    Returns
    -------
    dict of str to TorchfabError
        Errors by host; empty if all folders are removed.
    """
    timeout_s = record.settings.answer_timeout_s
    results = request_all(record.nodes, record.settings, lambda node: ForgetRequest(**address(record, node)), timeout_s)
    return {node.label: result for node, result in results if isinstance(result, TorchfabError)}


def machines(record: Record) -> list[tuple[Node, Mapping[str, Any] | None]]:
    """Return the nodes of a job, each with the job's address there.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    list of tuple
        Node and address (see `tmux_logs.address`).
    """
    return [(node, address(record, node)) for node in record.nodes]

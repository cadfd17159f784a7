"""The Slurm runtime: a job runs in an allocation. Slurm's commands run here, or on a login node over SSH.

Slurm reports whether the job is pending, running or how it ended. The status of each rank comes from the files that the
supervisors write into the job's folder, which all nodes share.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from torchfab.core.console import write_err
from torchfab.core.errors import HostError, TorchfabError, UsageError
from torchfab.core.events import BacklogRead, ContactLost, Event, EventStream, Lines, StatusChanged, Tick
from torchfab.core.specs import Node, Submission
from torchfab.core.status import JobStatus, State, Verdict
from torchfab.records import Record
from torchfab.runtimes import CheckpointWatch, SignalReport, StopReport
from torchfab.runtimes.slurm import state
from torchfab.runtimes.tmux import signal_report
from torchfab.runtimes.tmux_stacks import program_for
from torchfab.stacks.model import StackDump, from_answer
from torchfab.transport.messages import AnswerType, Request
from torchfab.transport.messages.job import CheckpointAnswer
from torchfab.transport.messages.launch import CommitRequest
from torchfab.transport.messages.slurm import (
    SlurmCheckpointRequest,
    SlurmEvidenceRequest,
    SlurmForgetRequest,
    SlurmLogsFrame,
    SlurmLogsRequest,
    SlurmSignalRequest,
    SlurmStacksRequest,
    SlurmStatusRequest,
    SlurmStopRequest,
    SlurmSubmitRequest,
)
from torchfab.transport.node_streams import NodeStreams
from torchfab.transport.session import NodeError, Session
from torchfab.transport.ssh import NodeGroup, open_session
from torchfab.why.evidence import Evidence, SchedulerReason, evidence_from_report, search_limits

if TYPE_CHECKING:
    from pathlib import Path

    from torchfab.profiling.model import JobProfile

NAME = "slurm"
_POLL_S = 0.1
_STEP_S = 60.0  # Slurm may take a while to start a job step


def submit(record: Record, submission: Submission) -> dict[str, Any]:
    """Submit a job with sbatch.

    Parameters
    ----------
    record : Record
        The job.
    submission : Submission
        The batch script and its options.

    Returns
    -------
    dict
        Details for the record: the Slurm job id.

    Raises
    ------
    TorchfabError
        A check or Slurm rejected the job; the submission is rolled back.
    """
    details, settings = submission.details, record.settings
    request = SlurmSubmitRequest(
        **{name: details[name] for name in ("folder", "options", "spec", "workdir", "script", "python")},
        text=submission.text,
        secrets=dict(submission.job.secrets),
        mask_key=record.mask_key,
        timeout_s=settings.prepare_timeout_s,
        patience_s=round(settings.answer_timeout_s),
    )
    session = _open(record)
    try:
        answer = _send(record, session, request, settings.prepare_timeout_s + 10)
        _send(record, session, CommitRequest(), settings.answer_timeout_s)
    finally:
        session.close()  # without `commit`, the login node rolls the submission back
    return {"slurm_id": answer.slurm_id, "known_as": f"Slurm job {answer.slurm_id}"}


def machines(record: Record) -> list[tuple[Node, Mapping[str, Any] | None]]:
    """Return the nodes that Slurm allocated to the job.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    list of tuple
        Node and None: `fab top` shows these hosts without the job's log lines.

    Raises
    ------
    UsageError
        The job has no nodes yet, or does not have them any more.
    """
    found = status(record)
    if not found.nodes:
        raise UsageError(f"job {record.name} is on no node: {found.state}", f"fab status {record.name}")
    return [(each.node, None) for each in found.nodes]


def login_node(record: Record) -> Node:
    """Return the node on which Slurm's commands run.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    Node
        The login node, or this machine.
    """
    return Node.from_json(record.details["login"])


def _open(record: Record) -> Session:
    node = login_node(record)
    (connection,) = NodeGroup([node], record.settings)
    return open_session(connection, record.settings)


def _send(record: Record, session: Session, request: Request[AnswerType], timeout_s: float) -> AnswerType:
    """Send a request; raise its problems with the name of the login node."""
    try:
        return session.request(request, timeout_s)
    except NodeError as error:
        texts = [each.what for each in error.problems]
        where = "" if login_node(record).is_local else f"{login_node(record).label}: "
        raise TorchfabError("; ".join([f"{where}{texts[0]}", *texts[1:]]), error.problems[0].fix) from None


def _address(record: Record) -> dict[str, Any]:
    """Return the fields that identify a job in every request."""
    return {
        "slurm_id": record.details.get("slurm_id", ""),
        "folder": record.details["folder"],
        "mask_key": record.mask_key,
        "job_id": record.job_id,
        "nodes": record.min_nodes,
    }


def _unconfirmed(record: Record) -> JobStatus | None:
    """Return the status of a job whose `fab` ended before Slurm answered; None for any other job."""
    if "slurm_id" in record.details:
        return None
    if time.time() - record.created < _rollback_deadline_s(record):
        return JobStatus((), record.min_nodes, Verdict(State.PENDING, reason="it is being submitted"))
    reason = "its fab ended before Slurm answered, and the submission was cancelled"
    return JobStatus((), record.min_nodes, Verdict(State.LOST, ended=True, reason=reason))


def _rollback_deadline_s(record: Record) -> float:
    """Return the seconds after which an unconfirmed submission is certainly rolled back, on the login node too."""
    settings = record.settings
    return 2 * (3 * settings.connect_timeout_s + settings.answer_timeout_s) + settings.prepare_timeout_s


def _request(record: Record, request: Request[AnswerType], timeout_s: float) -> AnswerType:
    session = _open(record)
    try:
        return _send(record, session, request, timeout_s)
    finally:
        session.close()


def status(record: Record) -> JobStatus:
    """Read the status of a job from Slurm and from the job's folder.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    JobStatus
        `unreachable` if the login node does not answer.
    """
    if unconfirmed := _unconfirmed(record):
        return unconfirmed
    sent = time.time()
    try:
        answer = _request(record, SlurmStatusRequest(**_address(record)), record.settings.answer_timeout_s)
    except TorchfabError as error:
        return state.unreachable(record.min_nodes, error.message)
    return state.job_status(record, answer, sent, time.time())


# ---- why


def evidence(record: Record) -> Evidence:
    """Collect evidence for `fab why` from Slurm and from the job's folder.

    Parameters
    ----------
    record : Record
        The job.

    Returns
    -------
    Evidence
        Slurm's reason, the batch script's output, and logs and error files by node.
    """
    sent = time.time()
    if unconfirmed := _unconfirmed(record):
        return Evidence(record.name, record.created, unconfirmed, ())
    try:
        timeout_s = record.settings.answer_timeout_s
        limits = search_limits(record.min_nodes, timeout_s)
        answer = _request(record, SlurmEvidenceRequest(**_address(record), **limits), timeout_s)
    except TorchfabError as error:
        return Evidence(record.name, record.created, state.unreachable(record.min_nodes, error.message), ())
    job = state.job_status(record, answer, sent, time.time())
    by_rank = {rank: msgspec.to_builtins(each) for rank, each in enumerate(answer.evidence)}
    nodes = tuple(evidence_from_report(each, by_rank.get(each.node.rank, {})) for each in job.nodes)
    reason = state.end_reason(answer, job)
    scheduler_reasons = (SchedulerReason(*reason),) if reason else ()
    events, ranks = record.events(), record.fixed_world_size
    return Evidence(record.name, record.created, job, nodes, scheduler_reasons, events, answer.batch, ranks)


# ---- stacks


def stacks(record: Record, request: Mapping[str, Any]) -> StackDump:
    """Collect the stacks of all ranks by an overlapping srun step in the job's allocation.

    Parameters
    ----------
    record : Record
        The job.
    request : Mapping
        `ranks`, `native`, `timeout_s`, `signal`: as `torchfab.remote.stacks.dump.answer` takes them.

    Returns
    -------
    Dump
        The stacks by node, and the errors of the nodes that did not answer.

    Raises
    ------
    UsageError
        The job's submission is not confirmed.
    TorchfabError
        The job does not run, or Slurm's commands fail.
    """
    if unconfirmed := _unconfirmed(record):
        raise UsageError(f"job {record.name} does not run: {unconfirmed.reason}")
    # Slurm may take a while to start the step. One late node must not make the answers of the others be discarded.
    timeout_s = record.settings.answer_timeout_s + _STEP_S + 2 * request["timeout_s"]
    session = _open(record)
    try:
        step_request = SlurmStacksRequest(**_address(record), **request)
        answer = _send(record, session, step_request, timeout_s)
        if answer.wants:
            with_program = msgspec.structs.replace(step_request, program=program_for(answer.machine))
            answer = _send(record, session, with_program, timeout_s)
    finally:
        session.close()
    by_node = [(Node(each.rank, each.host), each.answer) for each in answer.nodes]
    no_answer = _no_answer(record, answer.said)
    failed = {node.label: no_answer for node, node_answer in by_node if node_answer is None}
    return StackDump(
        tuple(from_answer(node, msgspec.to_builtins(each)) for node, each in by_node if each is not None), failed
    )


# ---- profile


def profile(record: Record, ranks: Sequence[int] | None, seconds: float, folder: Path) -> JobProfile:
    """Raise TorchfabError: ranks that Slurm starts have no probe.

    Parameters
    ----------
    record : Record
        The job.
    ranks, seconds, folder
        Ignored.

    Returns
    -------
    JobProfile
        Never.

    Raises
    ------
    TorchfabError
        Always.
    """
    raise TorchfabError(
        f"job {record.name}: ranks that Slurm starts have no probe, which fab profile needs",
        "use torch.profiler in the script; or launch over a hosts file",
    )


# ---- stop


def stop(record: Record, grace_s: float, nodes: Sequence[Node] | None = None) -> tuple[StopReport, ...]:
    """Cancel the job: its ranks get SIGTERM, and after `grace_s` seconds SIGKILL.

    Parameters
    ----------
    record : Record
        The job.
    grace_s : float
        Seconds between SIGTERM and SIGKILL.
    nodes : sequence of Node, optional
        Ignored: Slurm cancels whole jobs only.

    Returns
    -------
    tuple of StopReport
        One report for the whole job.
    """
    if _unconfirmed(record):
        return (StopReport(Node(0, "Slurm"), summary="its submission was never confirmed"),)
    whole_job = Node(0, f"Slurm job {record.details['slurm_id']}")
    try:
        request = SlurmStopRequest(**_address(record), grace_s=grace_s)
        answer = _request(record, request, grace_s + 60 + record.settings.answer_timeout_s)
    except TorchfabError as error:
        return (StopReport(whole_job, error=error),)
    summary = "was removed from the queue" if answer.before in state.WAITING else ""
    killed, left = tuple(answer.killed), tuple(answer.left)
    if left:
        summary = f"it was cancelled {answer.seconds:.0f} s ago, and Slurm has not ended it yet: {left[0]}"
    return (
        StopReport(
            whole_job,
            int(answer.asked),
            killed,
            left,
            answer.seconds,
            summary=summary,
            ended_ranks=int(answer.rank_ends.ended),
            killed_ranks=int(answer.rank_ends.killed),
            ranks_s=float(answer.rank_ends.seconds),
            unfinished_ranks=int(answer.rank_ends.unfinished),
            writing=tuple(answer.rank_ends.writing),
            proof="slurm",
        ),
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

    Raises
    ------
    UsageError
        The job's submission is not confirmed.
    TorchfabError
        The job does not run, or Slurm's commands fail.
    """
    if unconfirmed := _unconfirmed(record):
        raise UsageError(f"job {record.name} does not run: {unconfirmed.reason}")
    chosen = None if ranks is None else list(ranks)
    reports: tuple[SignalReport, ...] = ()
    session = _open(record)
    try:
        for send in (False, True):
            if all(each.may_send for each in reports):
                request = SlurmSignalRequest(**_address(record), signal=name, ranks=chosen, send=send)
                answer = _send(record, session, request, record.settings.answer_timeout_s + _STEP_S)
                missing = _no_answer(record, answer.said)
                reports = tuple(
                    signal_report(Node(each.rank, each.host), each.answer or missing) for each in answer.nodes
                )
    finally:
        session.close()
    return reports


class _CheckpointWatch:
    def __init__(self, record: Record) -> None:
        self.record = record
        self.session = _open(record)

    def find_changed(self, requests: Mapping[int, Mapping[str, Any]]) -> dict[Node, CheckpointAnswer | TorchfabError]:
        request = SlurmCheckpointRequest(**_address(self.record), **next(iter(requests.values())))
        login = login_node(self.record)
        try:
            return {login: _send(self.record, self.session, request, self.record.settings.answer_timeout_s)}
        except TorchfabError as error:
            return {login: error}

    def close(self) -> None:
        self.session.close()


def watch_checkpoints(record: Record) -> CheckpointWatch:
    """Open a connection to the login node, which sees the job's checkpoints in folders shared with the nodes.

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


def _no_answer(record: Record, said: str) -> HostError:
    fix = f"check that this works: srun --jobid={record.details['slurm_id']} --overlap hostname"
    return HostError(said or "its task wrote no answer", fix)


def forget(record: Record) -> dict[str, TorchfabError]:
    """Remove the job's folder.

    Parameters
    ----------
    record : Record
        The job; it has ended.

    Returns
    -------
    dict of str to TorchfabError
        The error by host; empty if the folder is removed.
    """
    try:
        _request(record, SlurmForgetRequest(**_address(record)), record.settings.answer_timeout_s)
    except TorchfabError as error:
        return {login_node(record).label: error}
    return {}


def attach_argv(record: Record, node: Node, window: str) -> tuple[str, ...]:
    """Return the srun command that opens a shell on one of the job's nodes, inside its allocation.

    Parameters
    ----------
    record : Record
        The job.
    node : Node
        The node.
    window : str
        Ignored: an allocation has no tmux windows.

    Returns
    -------
    tuple of str
        The command; over `ssh` if Slurm's commands run on a login node.
    """
    from torchfab.runtimes.tmux import ssh_argv

    write_err("a shell on the node, inside the job; to leave it: exit (the job goes on)")
    options = ("--overlap", "--pty", "--nodes=1", "--ntasks=1", f"--nodelist={node.host}")
    srun = ("srun", f"--jobid={record.details['slurm_id']}", *options, os.environ.get("SHELL", "/bin/bash"))
    login = login_node(record)
    if login.is_local:
        return srun
    return (*ssh_argv(login, record.settings), "-t", "--", login.host, "exec " + shlex.join((*srun[:-1], "/bin/bash")))


# ---- logs


def follow(record: Record, request: Mapping[str, Any], nodes: Sequence[Node] | None = None) -> EventStream:
    """Yield the job's log lines and its status as Slurm reports it, until its end, over one connection.

    After a connection loss, it reconnects every 5 seconds and reading resumes at the last offset.

    Parameters
    ----------
    record : Record
        The job.
    request : Mapping
        `follow`, `lines`, `ranks`, `grep`: as `torchfab.remote.job.log_reader.Reader` takes them.
    nodes : sequence of Node, optional
        Ignored: a single stream covers all nodes.

    Returns
    -------
    iterator of Event
        Ends when the job has ended, or without `follow` when the existing lines are read.
    """
    if unconfirmed := _unconfirmed(record):
        yield StatusChanged(unconfirmed)
        return
    logs = _JobLogs(record, request)
    streams = NodeStreams([login_node(record)], record.settings, lambda _: logs.request)
    try:
        while not streams.are_finished:
            has_events = False
            for node, update in streams.poll():
                for event in logs.events(node, update):
                    has_events = True
                    yield event
                if logs.is_done:
                    streams.finish(node)
            if not has_events:
                time.sleep(_POLL_S)
                yield Tick()
    finally:
        streams.close()


class _JobLogs:
    """Read position in a job's logs: its request holds the offset up to which each file is read."""

    def __init__(self, record: Record, request: Mapping[str, Any]) -> None:
        self.record = record
        self.request = SlurmLogsRequest(**_address(record), **request)
        self.nodes: dict[int, Node] = {}
        self.is_done = False

    def events(self, login: Node, update: Sequence[SlurmLogsFrame] | TorchfabError) -> Iterator[Event]:
        """Yield the events of new frames, or of a lost connection to the login node."""
        if isinstance(update, TorchfabError):
            yield ContactLost(login, update)
            return
        for frame in update:
            if not self.is_done:
                yield from self._events_of(frame)

    def _events_of(self, update: SlurmLogsFrame) -> Iterator[Event]:
        shown = update.end or update.seen
        if shown is not None:
            found = state.job_status(self.record, shown, time.time(), time.time())
            self.nodes.update({each.node.rank: each.node for each in found.nodes})
            self.is_done = update.end is not None
            yield StatusChanged(found)
        if update.lines:
            rank = update.node
            yield Lines(self.nodes.get(rank, Node(rank, f"node-{rank}")), update.lines)
        if update.offsets is not None:
            self.request = msgspec.structs.replace(self.request, offsets=update.offsets)
        if update.past:
            yield BacklogRead(Node(0, "slurm"))
        if update.problems:
            self.is_done = True
            yield StatusChanged(state.unreachable(self.record.min_nodes, update.problems[0].what))

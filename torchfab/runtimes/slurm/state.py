"""Status of a Slurm job: pure functions from the answers of Slurm and of the job's folder to a JobStatus."""

from __future__ import annotations

import re

from torchfab.core import status
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus, State, Verdict
from torchfab.records import Record
from torchfab.transport.messages.slurm import SlurmJob, SlurmNode, SlurmStatus

WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_FAILED = ("FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL", "REVOKED")
# Final states that Slurm itself causes, with their descriptions.
_ENDS = {
    "TIMEOUT": "the time limit{limit} was reached",
    "OUT_OF_MEMORY": "it used more memory than it had requested (--sbatch-arg=--mem=... requests more)",
    "NODE_FAIL": "a node failed",
    "PREEMPTED": "it was preempted by another job",
    "DEADLINE": "its deadline passed",
    "BOOT_FAIL": "a node did not boot",
    "REVOKED": "it runs on another cluster of the federation",
}
# Why a job is pending: the reasons from squeue's manual that users encounter. Other reasons are shown as they are.
_REASONS = {
    "None": "Slurm has not considered it yet",
    "Priority": "jobs with a higher priority are before it",
    "Resources": "waits for nodes to become free",
    "BeginTime": "may not begin before {start}",
    "Dependency": "waits for a job that it depends on",
    "JobHeldUser": "held by its user; to release it: scontrol release {id}",
    "JobHeldAdmin": "held by an administrator",
    "Licenses": "waits for a license",
    "NodeDown": "a node that it needs is down",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is inactive",
    "PartitionConfig": "no node of its partition has the resources that it requests",
    "PartitionNodeLimit": "requests more nodes than its partition has, or than are up",
    "PartitionTimeLimit": "requests more time than its partition allows",
    "ReqNodeNotAvail": "a node that it needs is not available",
    "Reservation": "waits for its reservation",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its quality of service is not valid",
    "BadConstraints": "no node has the resources that it requests",
    "Prolog": "the nodes are being prepared",
    "Cleaning": "its previous run is being cleaned up",
    "JobLaunchFailure": "it could not be started",
    "launch_failed_requeued_held": "it could not be started, and is held; to try again: scontrol release {id}",
}
_FAMILIES = (
    ("Assoc", "a limit of its account or user is reached"),
    ("QOS", "a limit of its quality of service is reached"),
    ("Max", "a limit is reached"),
)


def pending_reason(slurm: SlurmJob, slurm_id: str) -> str:
    """Return a readable reason why a job is pending, with Slurm's own name for it.

    Parameters
    ----------
    slurm : SlurmJob
        Slurm's part of the status: `why`, `start`, `restarts`.
    slurm_id : str
        Id of the job in Slurm.

    Returns
    -------
    str
        The reason; for a requeued job also how often it was requeued.
    """
    reason = slurm.why or "None"
    name = reason.strip("()").partition(",")[0]
    of_family = next((text for prefix, text in _FAMILIES if name.startswith(prefix)), "")
    description = _REASONS.get(name, of_family).format(start=slurm.start or "later", id=slurm_id)
    shown = name.replace("_", " ")
    text = f"{description} ({shown})" if description and name != "None" else description or shown
    restarts = slurm.restarts
    times = "once" if restarts == 1 else f"{restarts} times"
    return f"{text}; it was requeued {times}" if restarts else text


def unreachable(min_nodes: int, reason: str) -> JobStatus:
    """Return the status `unreachable`.

    Parameters
    ----------
    min_nodes : int
        Number of nodes that the job needs.
    reason : str
        Why the status is unknown.

    Returns
    -------
    JobStatus
        A status without nodes.
    """
    return JobStatus((), min_nodes, Verdict(State.UNREACHABLE, reason=reason))


def job_status(record: Record, answer: SlurmStatus, sent: float, received: float) -> JobStatus:
    """Return the status of a job.

    Parameters
    ----------
    record : Record
        The job.
    answer : SlurmStatus
        Answer of `torchfab.remote.slurm.job.status`.
    sent, received : float
        When the request was sent, and when the answer came, in seconds since the epoch.

    Returns
    -------
    JobStatus
        Slurm's state of the job, and the status of each node from the job's folder.
    """
    slurm = answer.slurm
    if slurm.error:
        return unreachable(record.min_nodes, f"Slurm cannot be queried: {slurm.error}")
    if slurm.state in WAITING:
        reason = pending_reason(slurm, record.details["slurm_id"])
        return JobStatus((), record.min_nodes, Verdict(State.PENDING, reason=reason))
    nodes = tuple(_node_status(each, slurm, sent, received) for each in answer.nodes if _is_known(each))
    return JobStatus(nodes, record.min_nodes, _verdict(slurm, answer, nodes, record.details["folder"]))


def _is_known(each: SlurmNode) -> bool:
    return bool(each.host or each.status)


def _node_status(each: SlurmNode, slurm: SlurmJob, sent: float, received: float) -> NodeStatus:
    node = Node(each.rank, each.host or f"node-{each.rank}")
    if each.status is None:
        ended = slurm.state in _FAILED or slurm.state in ("COMPLETED", "CANCELLED", "")
        return NodeStatus(node, State.LOST if ended else State.STARTING, "nothing was recorded there" if ended else "")
    return status.from_answer(node, each.status, sent, received)


def _verdict(slurm: SlurmJob, answer: SlurmStatus, nodes: tuple[NodeStatus, ...], folder: str) -> Verdict:
    """Return the state of the whole job from Slurm; if Slurm has purged the job, from its folder."""
    state, code = slurm.state, _code(slurm.exit)
    if not state:
        return _purged(nodes, answer, folder)
    if state not in _FAILED and state not in ("COMPLETED", "CANCELLED"):
        # While the job runs, its nodes report more than Slurm. Once it ends, only Slurm reports whether it is requeued.
        return Verdict(State.RUNNING, reason="Slurm is ending it") if state == "COMPLETING" else Verdict()
    asked_to_stop = answer.stop_asked is not None
    if state == "COMPLETED":
        return Verdict(State.SUCCEEDED, ended=True)
    has_failed_before = any(map(status.find_failures, nodes)) and not _stopped_first(nodes)
    if asked_to_stop and has_failed_before and state == "CANCELLED":
        state = "FAILED"  # `wait` and --follow cancel the rest of the job after a failure
    if state == "CANCELLED" or (state == "FAILED" and asked_to_stop and _stopped_first(nodes)):
        reason = "" if asked_to_stop else "it was cancelled with scancel, not with fab stop"
        return Verdict(State.STOPPED, ended=True, reason=reason)
    if state in _ENDS:
        is_lost = state in ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED")
        outcome = State.LOST if is_lost else State.FAILED
        return Verdict(outcome, ended=True, reason=_ENDS[state].format(limit=_limit(slurm)), code=code)
    return Verdict(State.FAILED, ended=True, reason=_failure_reason(nodes, answer, slurm), code=code)


def end_reason(answer: SlurmStatus, job: JobStatus) -> tuple[str, str] | None:
    """Return why Slurm ended a job.

    Parameters
    ----------
    answer : SlurmStatus
        Answer of `torchfab.remote.slurm.job.status`.
    job : JobStatus
        The status derived from it.

    Returns
    -------
    tuple of str, optional
        Slurm's name for the reason, and a description; None if Slurm did not end the job.
    """
    state = answer.slurm.state
    if not job.reason or not job.has_ended or not job.has_failed:
        return None
    if state in _ENDS or state == "CANCELLED":
        return state, job.reason
    if any(process.warned for node in job.nodes for process in node.processes):
        return "TIMEOUT", job.reason
    return ("BATCH", job.reason) if state == "FAILED" else None


def _stopped_first(nodes: tuple[NodeStatus, ...]) -> bool:
    return JobStatus(nodes, len(nodes)).was_stopped


def _failure_reason(nodes: tuple[NodeStatus, ...], answer: SlurmStatus, slurm: SlurmJob) -> str:
    """Return the reason of a failure that was not caused by a rank; empty if a rank caused it."""
    processes = [process for node in nodes for process in node.processes]
    warned = [process.warned for process in processes if process.warned]
    if warned:
        return f"the time limit{_limit(slurm)} was near: the ranks got {warned[0]}, and ended"
    if processes:
        return ""
    output = f": {answer.said}" if answer.said else ""
    return f"the batch script ended with code {_code(slurm.exit)} before torchrun began{output}"


def _limit(slurm: SlurmJob) -> str:
    return f" of {slurm.limit}" if slurm.limit else ""


def _purged(nodes: tuple[NodeStatus, ...], answer: SlurmStatus, folder: str) -> Verdict:
    if not answer.exists:
        reason = f"Slurm has purged the job's record, and {folder} no longer exists"
        return Verdict(State.LOST, ended=True, reason=reason)
    known = JobStatus(nodes, len(nodes))
    if nodes and known.state in (State.SUCCEEDED, State.FAILED, State.STOPPED):
        return Verdict(known.state, ended=True)
    reason = "Slurm has purged the job's record, and not every node recorded its end"
    return Verdict(State.LOST, ended=True, reason=reason)


def _code(text: str) -> int | None:
    """Convert Slurm's `code:signal` to an exit code as a shell reports it; None for 0."""
    match = re.fullmatch(r"([0-9]{1,9})(?::([0-9]{1,9}))?", text)
    code, number = (int(match[1]), int(match[2] or 0)) if match else (0, 0)
    return 128 + number % 128 if number else code or None

"""The tmux runtime: processes live in the private tmux server of each node.

A node is reached over SSH or, for `localhost`, through a local process.
"""

from __future__ import annotations

import queue
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchfab import status as states
from torchfab.commandline import tell
from torchfab.environment import SECRET_PATTERNS
from torchfab.errors import HostsFailedError, Interrupted, TorchfabError
from torchfab.events import ContactLost, Event, Lines, NodeEnded, PastRead, Tick
from torchfab.fanout import fan_out
from torchfab.inventory import fold
from torchfab.job import Facts, Job, Needs, Node, NodePlan, Plan, session_name
from torchfab.records import Record
from torchfab.runtimes import StopReport
from torchfab.ssh import HostError, Session, Settings, connections, open_session

NAME = "tmux"
_POLL_S = 0.05
_RETRY_S = 5.0
_ROLLBACK_GRACE_S = 2.0

Progress = Callable[[str, int, int], None]


@dataclass
class Prepared:
    """Nodes on which phase one has gone well: their open sessions and their facts."""

    settings: Settings
    sessions: dict[int, Session] = field(default_factory=dict)
    facts: dict[int, Facts] = field(default_factory=dict)
    told: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    def close(self) -> None:
        """Hang up everywhere: what was prepared and not kept is taken back by the nodes themselves."""
        for session in list(self.sessions.values()):  # after Ctrl-C, threads may still be at work
            session.close()


# ---- phase one


def prepare(
    job: Job, nodes: Sequence[Node], needs: Needs, settings: Settings, write: bool, progress: Progress
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
    prepared = Prepared(settings)
    reasons: dict[str, TorchfabError] = {}
    patience_s = _patience_s(len(nodes), settings)

    def act(node: Node) -> Mapping[str, Any]:
        session = open_session(node, opened[node.rank], settings)
        prepared.sessions[node.rank] = session
        request = {**_prepare_request(job, node, nodes, needs, write), "patience_s": patience_s}
        return session.ask(request, settings.prepare_timeout_s)

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


def _patience_s(nodes: int, settings: Settings) -> int:
    """Return how many seconds a node may wait for our next word, when all others take as long as they may."""
    rounds = -(-nodes // settings.fanout)
    a_node_s = 3 * settings.connect_timeout_s + settings.prepare_timeout_s + settings.start_timeout_s
    return round(10 + rounds * a_node_s)


def _note_prepared(
    prepared: Prepared, node: Node, answer: Mapping[str, Any] | Exception, reasons: dict[str, TorchfabError]
) -> None:
    problem = _problem_in(answer)
    if problem is not None:
        reasons[node.label] = problem
        return
    assert not isinstance(answer, Exception)
    told = answer["facts"]
    prepared.told[node.rank] = told
    known = ("folder", "gpus", "cpus", "port", "is_root", "versions")
    prepared.facts[node.rank] = Facts(**{name: told[name] for name in known})


def _prepare_request(job: Job, node: Node, nodes: Sequence[Node], needs: Needs, write: bool) -> dict[str, Any]:
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
        "modules": _modules(job, node, needs),
        "python_path": job.env.get("PYTHONPATH"),
        "installs": dict(needs.installs),
        "programs": [vars(each) for each in needs.programs if node.rank == 0 or not each.on_head_only],
        "master_addr": job.master_addr or first.address or first.host,
        "one_machine": len(nodes) == 1,
        "peers": [each.address or each.host for each in nodes[1:]] if needs.peers and node.rank == 0 else [],
        "port": job.port if needs.port and node.rank == 0 else None,
        "write": write,
    }


def _modules(job: Job, node: Node, needs: Needs) -> list[str]:
    of_head = () if node.rank else needs.head_modules
    return [*needs.modules, *of_head, *([job.module] if job.module else [])]


def _problem_in(answer: Mapping[str, Any] | Exception) -> TorchfabError | None:
    """Return what a node complains of, or why it did not answer; None when all is well."""
    if isinstance(answer, TorchfabError):
        return answer
    if isinstance(answer, Exception):
        return HostError(f"{type(answer).__name__}: {answer}")
    problems = answer.get("problems", ())
    if not problems:
        return None
    texts = [each["what"] + (f"\n  fix: {each['fix']}" if each["fix"] else "") for each in problems]
    return HostError("\n".join(texts))


def _failed_words(reasons: Mapping[str, TorchfabError], nodes: Sequence[Node], outcome: str) -> str:
    return f"{len(reasons)} of {len(nodes)} hosts failed; {outcome}"


def _in_order(reasons: Mapping[str, TorchfabError], nodes: Sequence[Node]) -> dict[str, TorchfabError]:
    return {node.label: reasons[node.label] for node in nodes if node.label in reasons}


# ---- phase two


def start(plan: Plan, prepared: Prepared, progress: Progress) -> None:
    """Start everything that the plan says, on all nodes at once; if any fails, take down what has started.

    Raises
    ------
    HostsFailedError
        With one reason for each node that failed. Nothing of the job runs then, unless the message says where.
    """
    started = 0
    reasons: dict[str, TorchfabError] = {}
    nodes = [each.node for each in plan.nodes]
    timeout_s = prepared.settings.start_timeout_s

    def act(each: NodePlan) -> Mapping[str, Any]:
        return prepared.sessions[each.node.rank].ask(
            start_request(plan, each, timeout_s), timeout_s + min(timeout_s, 5)
        )

    def keep(each: NodePlan) -> Mapping[str, Any]:
        return prepared.sessions[each.node.rank].ask({"op": "keep"}, timeout_s)

    try:
        for phase, step in (("starting", act), ("confirming", keep)):
            for wave in plan.waves:
                for each, answer in fan_out(wave, step, prepared.settings.fanout):
                    problem = _problem_in(answer)
                    if problem:
                        reasons[each.node.label] = problem
                    started += phase == "starting" and not problem
                    progress(phase, started, len(nodes))
                if reasons:
                    raise HostsFailedError(_failed_words(reasons, nodes, ""), _in_order(reasons, nodes))
    except BaseException as error:  # Ctrl-C too
        problem = _say_what_is_left(error, _roll_back(plan, prepared), plan)
        if problem is None:
            raise
        raise problem from None
    prepared.close()


def _say_what_is_left(error: BaseException, unsure: Sequence[str], plan: Plan) -> TorchfabError | None:
    """Return the error that says how a launch that failed was taken back; None where nothing more is to be said."""
    left = f"{fold(unsure)} did not confirm that nothing of it runs there" if unsure else ""
    fix = f"it ends by itself once it notices; to make sure: fab stop {plan.job.name}" if unsure else ""
    problem: TorchfabError
    if isinstance(error, HostsFailedError):
        nodes = [each.node for each in plan.nodes]
        words = _failed_words(error.reasons, nodes, left or "what had started was stopped again")
        problem = HostsFailedError(words, error.reasons, fix)
    elif isinstance(error, KeyboardInterrupt) and unsure:
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
        "grace_s": plan.job.grace_s,
        "start_timeout_s": timeout_s,
        "secret_patterns": list(SECRET_PATTERNS),
        "processes": processes,
    }


def _roll_back(plan: Plan, prepared: Prepared) -> list[str]:
    """Stop what has started; return the hosts on which it may still run."""
    # A node that was not told to keep what it started takes it back when we hang up; asking tells us that it did.
    request = {
        "op": "take_back",
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
) -> Iterator[tuple[Node, Any]]:
    """Ask every node the same; yield each with its answer and when it was asked and answered, or with an error."""
    nodes = record.nodes if nodes is None else nodes
    opened = connections(nodes, record.settings)

    def act(node: Node) -> tuple[dict[str, Any], float, float]:
        session = open_session(node, opened[node.rank], record.settings)
        try:
            asked = time.time()
            answer = session.ask({**_address(record, node), **request}, timeout_s)
            return answer, asked, time.time()
        finally:
            session.close()

    yield from fan_out(nodes, act, record.settings.fanout)


def _address(record: Record, node: Node) -> dict[str, Any]:
    return {
        "job_id": record.job_id,
        "node_dir": record.node_dir,
        "node_rank": node.rank,
        "session": session_name(record.name, node.rank),
    }


def status(record: Record) -> states.JobStatus:
    """Ask every node how the job is there; one that does not answer is `unreachable`."""
    found: dict[int, states.NodeStatus] = {}
    for node, result in _ask_all(record, {"op": "status"}, record.settings.answer_timeout_s):
        found[node.rank] = _node_status(node, result)
    return states.JobStatus(tuple(found[node.rank] for node in record.nodes), record.min_nodes)


def _node_status(node: Node, result: Any) -> states.NodeStatus:
    if isinstance(result, Exception):
        return states.NodeStatus(node, "unreachable", str(result).splitlines()[0])
    answer, asked, answered = result
    problem = _problem_in(answer)
    if problem is not None:
        return states.NodeStatus(node, "unreachable", problem.message)
    return states.from_answer(node, answer, asked, answered)


def stop(record: Record, grace_s: float, nodes: Sequence[Node] | None = None) -> tuple[StopReport, ...]:
    """End the job on all its nodes, or on some: TERM, `grace_s` seconds, KILL, and proof that no process is left."""
    found: dict[int, StopReport] = {}
    timeout_s = grace_s + record.settings.answer_timeout_s
    for node, result in _ask_all(record, {"op": "stop", "grace_s": grace_s}, timeout_s, nodes):
        found[node.rank] = _stop_report(node, result)
    return tuple(found[rank] for rank in sorted(found))


def _stop_report(node: Node, result: Any) -> StopReport:
    problem = _problem_in(result if isinstance(result, Exception) else result[0])
    if problem is not None:
        return StopReport(node, error=problem)
    answer = result[0]
    return StopReport(node, answer["asked"], tuple(answer["killed"]), tuple(answer["left"]), answer["seconds"])


def forget(record: Record) -> dict[str, TorchfabError]:
    """Remove the job's folders from its nodes; return the nodes where that failed."""
    results = _ask_all(record, {"op": "forget"}, record.settings.answer_timeout_s)
    problems = {node.label: _problem_in(got if isinstance(got, Exception) else got[0]) for node, got in results}
    return {label: problem for label, problem in problems.items() if problem is not None}


def attach_argv(record: Record, node: Node, window: str) -> tuple[str, ...]:
    """Return the command that opens a terminal on one window of the job's session."""
    tell("to leave it running: Ctrl-B, then D; Ctrl-C stops the process")
    target = f"={session_name(record.name, node.rank)}:" + (f"={window}" if window else "")
    tmux = ("tmux", "-L", "torchfab", "attach-session", "-t", target)
    if node.is_local:
        return tmux
    return (*ssh_argv(node, record.settings), "-t", "--", node.host, "exec " + shlex.join(tmux))


def ssh_argv(node: Node, settings: Settings) -> tuple[str, ...]:
    """Return the OpenSSH client with the options that reach a node, without the host."""
    port = ("-p", str(node.port)) if node.port else ()
    user = ("-l", node.user) if node.user else ()
    return ("ssh", *settings.ssh_options, *port, *user)


# ---- logs


class _Stream:
    """The log stream of one node: its session, while there is one, and how far it has been read."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.session: Session | None = None
        self.offsets: dict[str, int] = {}
        # Lines whose offsets have not come yet: told with them, or not at all, so that no line is ever told twice.
        self.waiting: list[Sequence[Any]] = []
        self.asked = 0.0
        self.retry_at: float | None = None
        self.done = False


def follow(record: Record, request: Mapping[str, Any], nodes: Sequence[Node] | None = None) -> Iterator[Event]:
    """Yield what the logs of a job hold and receive, and how it ends on each node; one connection per node.

    A node with which contact is lost is tried again every few seconds, and read on where it was left. A Tick is yielded
    when there is nothing to tell, so that the caller stays awake.

    Parameters
    ----------
    request : Mapping
        `follow`, `lines`, `ranks`, `grep`: as `torchfab.remote.logs.Reader` takes them.
    """
    streams = [_Stream(node) for node in (record.nodes if nodes is None else nodes)]
    opened: queue.SimpleQueue[tuple[_Stream, Session | Exception]] = queue.SimpleQueue()
    try:
        _open_in_background(streams, record, opened)
        while not all(stream.done for stream in streams):
            events = [*_take_opened(opened, record, request), *_take_frames(streams)]
            yield from events
            _retry(streams, record, opened)
            if not events:
                time.sleep(_POLL_S)
                yield Tick()
    finally:
        for stream in streams:
            if stream.session is not None:
                stream.session.close()


def _open_in_background(
    streams: Sequence[_Stream], record: Record, opened: queue.SimpleQueue[tuple[_Stream, Session | Exception]]
) -> None:
    made = connections([stream.node for stream in streams], record.settings)

    def act(stream: _Stream) -> Session:
        return open_session(stream.node, made[stream.node.rank], record.settings)

    def consume() -> None:
        for result in fan_out(streams, act, record.settings.fanout):
            opened.put(result)

    threading.Thread(target=consume, daemon=True).start()


def _take_opened(
    opened: queue.SimpleQueue[tuple[_Stream, Session | Exception]], record: Record, request: Mapping[str, Any]
) -> Iterator[Event]:
    while not opened.empty():
        stream, result = opened.get()
        try:
            if isinstance(result, Exception):
                raise result
            stream.session, stream.asked = result, time.time()
            offsets = {"offsets": stream.offsets} if stream.offsets else {}
            stream.session.post({**_address(record, stream.node), **request, **offsets, "op": "logs"})
        except Exception as error:
            yield _lose(stream, error)


def _lose(stream: _Stream, error: Exception) -> ContactLost:
    if stream.session is not None:
        stream.session.close()
        stream.session = None
    stream.waiting = []
    stream.retry_at = time.monotonic() + _RETRY_S
    problem = _problem_in(error)
    assert problem is not None
    return ContactLost(stream.node, problem)


def _retry(
    streams: Sequence[_Stream], record: Record, opened: queue.SimpleQueue[tuple[_Stream, Session | Exception]]
) -> None:
    due = [stream for stream in streams if stream.retry_at is not None and time.monotonic() > stream.retry_at]
    for stream in due:
        stream.retry_at = None
    if due:
        _open_in_background(due, record, opened)


def _take_frames(streams: Sequence[_Stream]) -> Iterator[Event]:
    for stream in streams:
        if stream.session is None or stream.done:
            continue
        try:
            for frame in stream.session.take():
                yield from _events_of(stream, frame)
        except HostError as error:
            if not stream.done:
                yield _lose(stream, error)


def _events_of(stream: _Stream, frame: Mapping[str, Any]) -> Iterator[Event]:
    stream.waiting += frame.get("lines", ())
    if "offsets" in frame:
        yield Lines(stream.node, stream.waiting)
        stream.offsets, stream.waiting = frame["offsets"], []
    if "past" in frame:
        yield PastRead(stream.node)
    if "end" in frame:
        stream.done = True
        now = time.time()
        yield NodeEnded(states.from_answer(stream.node, frame["end"], now, now))
    problem = _problem_in(frame)
    if problem is not None:
        stream.done = True
        yield NodeEnded(states.NodeStatus(stream.node, "unreachable", problem.message))

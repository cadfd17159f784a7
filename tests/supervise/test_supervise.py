"""Supervision: decisions, history, quarantine, locks, notifications."""

from __future__ import annotations

import json
import stat
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.records.test_launch_request import NODES, make_request
from tests.support import fuzzed
from tests.why import evidence_factory
from tests.why.evidence_factory import diagnose_nodes
from torchfab.cli.flags import LaunchFlags
from torchfab.commands import supervise
from torchfab.commands.supervise import SuperviseFlags
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.core.events import NodeEnded
from torchfab.core.flag_values import parse
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus
from torchfab.launch.context import CommandContext
from torchfab.records import Record
from torchfab.remote import procfs
from torchfab.supervise import detach, history, lease, outcome
from torchfab.supervise.model import LONGEST_WAIT_S, AttemptOutcome, Decision, Policy, PreviousAttempt
from torchfab.supervise.monitor import AttemptMonitor, Trigger, step_in
from torchfab.supervise.notifier import Notifier
from torchfab.supervise.policy import decide
from torchfab.supervise.quarantine import Lemon, Quarantine

POLICY = Policy(restarts=2, backoff_s=10)
BUG = AttemptOutcome(0, "script", "exception", "the script raised ValueError", "abc", step=10)
KILLED = AttemptOutcome(0, "killed", "killed", "SIGKILL came from outside", "def", step=10)
HANG = AttemptOutcome(0, "stall", "stall", "no rank has logged", step=10)
LOST = AttemptOutcome(
    0, "node", "node-unreachable", "b cannot be reached", "ghi", bad={"b": "cannot be reached"}, step=10
)
FULL = AttemptOutcome(0, "node", "disk-full", "no space was left", "jkl", blamed=("b",), step=10)


def numbered(outcomes: Sequence[AttemptOutcome]) -> list[AttemptOutcome]:
    return [replace(outcome, attempt=number) for number, outcome in enumerate(outcomes, start=1)]


def decided(*outcomes: AttemptOutcome, policy: Policy = POLICY) -> Decision:
    """Return the decision on the last of these outcomes; nodes that are bad or blamed were replaced."""
    *before, last = numbered(outcomes)
    return decide([PreviousAttempt(each, bool(each.bad or each.blamed)) for each in before], last, policy)


def at(outcome: AttemptOutcome, step: int | None, lived_s: float = 0.0) -> AttemptOutcome:
    return replace(outcome, step=step, lived_s=lived_s)


# ---- decisions


@pytest.mark.parametrize(
    ("outcomes", "restart", "words"),
    [
        pytest.param([replace(BUG, kind="succeeded")], False, "", id="success is the end"),
        pytest.param([replace(BUG, kind="stopped")], False, "", id="a stop on request is the end"),
        pytest.param([BUG], True, "restart 1 of 2", id="a first traceback may be bad luck"),
        pytest.param([BUG, BUG], False, "the same failure as in attempt 1", id="the same twice is a bug"),
        pytest.param([BUG, at(BUG, 20)], True, "restart 1 of 2", id="unless there was progress"),
        pytest.param([BUG, at(BUG, 20), at(BUG, 20)], False, "in attempt 2", id="progress resets the comparison"),
        pytest.param([BUG, replace(BUG, fingerprint="other")], True, "restart 2 of 2", id="two bugs are not the same"),
        pytest.param([BUG, KILLED, BUG], False, "in attempt 1", id="the same bug with another failure between"),
        pytest.param([KILLED, KILLED], True, "restart 2 of 2", id="killed twice is not a bug of the script"),
        pytest.param([KILLED] * 3, False, "2 restarts without progress", id="restarts run out"),
        pytest.param([KILLED, KILLED, at(KILLED, 11)], True, "restart 1 of 2", id="the count restarts after progress"),
        pytest.param([HANG, HANG, HANG], False, "2 restarts without progress", id="hangs use up restarts too"),
        pytest.param([LOST], True, "a node is replaced", id="a lost node is replaced"),
        pytest.param([KILLED, KILLED, LOST], True, "a node is replaced", id="replacing uses up no restart"),
        pytest.param([LOST, LOST, LOST, LOST, KILLED], True, "restart 1 of 2", id="replacements before do not count"),
        pytest.param([BUG, replace(BUG, bad={"b": "sick"})], True, "a node is replaced", id="a sick node goes first"),
        pytest.param([FULL], True, "a node is replaced", id="a node blamed by the script is replaced once"),
        pytest.param([FULL, replace(FULL, blamed=("c",))], False, "the same on b, c", id="twice, it is not the node"),
        pytest.param([FULL, at(FULL, 20)], True, "a node is replaced", id="unless there was progress between"),
        pytest.param([at(BUG, None), at(BUG, None, 601)], True, "restart 1 of 2", id="without steps, 10 minutes count"),
        pytest.param([at(BUG, None, 900), at(BUG, None, 599)], False, "in attempt 1", id="9 minutes do not count"),
        pytest.param([BUG, at(BUG, None, 900)], False, "in attempt 1", id="if the script logs steps, only steps count"),
        pytest.param([at(BUG, 30), at(BUG, 20)], False, "in attempt 1", id="steps reached before are not progress"),
    ],
)  # fmt: skip
def test_decide(outcomes: list[AttemptOutcome], restart: bool, words: str) -> None:
    decision = decided(*outcomes)
    assert (decision.restart, words in decision.reason) == (restart, True), decision


def test_bad_and_blamed_nodes_are_dropped_with_their_reasons() -> None:
    assert decided(LOST).drop == {"b": "cannot be reached"}
    assert decided(FULL).drop == {"b": "no space was left"}


def test_waits_double_up_to_the_cap() -> None:
    policy = Policy(restarts=9, backoff_s=10)
    waits = [decided(*[KILLED] * count, policy=policy).wait_s for count in range(1, 10)]
    assert waits == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert decided(LOST).wait_s == 0


OUTCOMES = st.lists(
    st.builds(
        replace, st.sampled_from([BUG, KILLED, HANG, LOST, FULL]), step=st.none() | st.integers(0, 3),
        lived_s=st.sampled_from([1.0, 700.0]),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@given(OUTCOMES, st.integers(0, 4))
def test_restarts_without_progress_stay_within_the_limit(outcomes: list[AttemptOutcome], restarts: int) -> None:
    policy = Policy(restarts=restarts)
    decision = decided(*outcomes, policy=policy)
    assert 0 <= decision.used <= restarts
    assert 0 <= decision.wait_s <= LONGEST_WAIT_S
    assert decision.reason
    assert not (decision.drop and not decision.restart)


@given(OUTCOMES)
def test_a_job_that_keeps_failing_without_progress_ends(outcomes: list[AttemptOutcome]) -> None:
    stuck = [replace(each, step=0, lived_s=1.0, bad={}, blamed=()) for each in outcomes]
    count = len(stuck)
    while decided(*stuck, policy=Policy(restarts=3)).restart:
        stuck.append(stuck[-1])
        assert len(stuck) <= count + 4


@given(OUTCOMES)
def test_attempts_before_progress_do_not_matter(outcomes: list[AttemptOutcome]) -> None:
    fresh = at(KILLED, 99)
    assert decided(*outcomes, fresh).reason == decided(fresh).reason


# ---- steps


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("step=10/40 loss=6.7", 10),
        ("Step: 7", 7),
        ('{"global_step": 12, "loss": 1}', 12),
        ("{'step': 3}", 3),
        ("steps=5, step=9", 9),
        ("timestep=4", None),
        ("footstep 3", None),
        ("step_ms=12.5", None),
        ("step=1e9999999999999999999999", None),
        ("step=99999999999999999999", None),
        ("steps: 10 loss: 2.5", 10),
        ("[deepspeed] steps: 10 loss: 2.5", 10),
        ("train step: 5", 5),
        ("  Gradient Accumulation steps = 4", None),
        ("  Total optimization steps = 500", None),
        ("step=7 of max steps: 500", 7),
        ("--warmup-steps=100", None),
        ("", None),
    ],
)
def test_step_in_a_log_line(text: str, step: int | None) -> None:
    assert step_in(text) == step


@fuzzed(st.text())
def test_step_in_accepts_any_line(text: str) -> None:
    step = step_in(text)
    assert step is None or step >= 0


# ---- nodes that reported the end of the job and are out of reach afterwards


def make_monitor(*states: str, min_nodes: int) -> AttemptMonitor:
    """Return a monitor of 3 nodes: the first two are out of reach, the first ones ended in these states."""
    nodes = tuple(Node(rank, f"n{rank}") for rank in range(3))
    job = (
        Path("jobs/gpt2"),
        "gpt2",
        "gpt2-0a1b2c3d",
        "per-node",
        "tmux",
        0.0,
        ("train.py",),
        nodes,
        "/x",
        3,
        min_nodes,
    )
    monitor = AttemptMonitor(
        Record(*job, ConnectionSettings(), {}, {}), POLICY, 0.0, lambda: False, lambda *_, **__: None
    )
    for rank, state in enumerate(states):
        monitor.tracker.apply(NodeEnded(NodeStatus(nodes[rank], state)))
    monitor.tracker.apply_polled(JobStatus((NodeStatus(nodes[2], "running"),), 1))
    monitor.away = {rank: time.monotonic() - 1000 for rank in (0, 1)}
    return monitor


def test_a_node_switched_off_after_success_is_not_lost() -> None:
    assert make_monitor("succeeded", "succeeded", min_nodes=3)._classify() is None
    assert make_monitor("succeeded", min_nodes=3)._classify() == "lost"


def test_an_absent_succeeded_node_does_not_replace_a_running_one() -> None:
    assert make_monitor("succeeded", "succeeded", min_nodes=2)._classify() is None


def test_success_on_all_nodes_counts_when_one_is_unreachable_later() -> None:
    nodes = tuple(NodeStatus(Node(rank, f"node{rank + 1}"), "succeeded") for rank in (0, 1))
    later = diagnose_nodes(
        evidence_factory.node(0, [evidence_factory.process("succeeded", evidence_factory.rank(0, 0))]),
        evidence_factory.unreachable(1),
    )
    assert outcome._cause(later, Trigger("ended", JobStatus(nodes, 2), None))[0] == "succeeded"


# ---- history


def as_events(previous: Sequence[PreviousAttempt]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [{"time": 0.0, "event": "planned"}]
    for each in previous:
        following = each.outcome.attempt + 1
        events += [
            {"time": 1.0, "event": history.ENDED, **history.outcome_as_json(each.outcome)},
            {"time": 2.0, "event": history.RESTART, "replaced": each.replaced, "next": following},
        ]
    return json.loads(json.dumps(events))  # type: ignore[no-any-return]


@given(OUTCOMES, st.booleans())
def test_previous_attempts_are_read_back_from_events(outcomes: list[AttemptOutcome], replaced: bool) -> None:
    previous = [PreviousAttempt(outcome, replaced) for outcome in numbered(outcomes)]
    attempt = len(outcomes) + 1
    assert history.previous_attempts(as_events(previous), attempt) == tuple(previous)
    assert history.pending_outcome(as_events(previous), attempt) is None


@given(OUTCOMES)
def test_a_restart_that_never_launched_leaves_the_outcome_pending(outcomes: list[AttemptOutcome]) -> None:
    previous = [PreviousAttempt(outcome) for outcome in numbered(outcomes)]
    attempt = len(outcomes)
    assert history.pending_outcome(as_events(previous), attempt) == previous[-1].outcome
    assert history.previous_attempts(as_events(previous), attempt) == tuple(previous[:-1])


@given(
    st.lists(
        st.fixed_dictionaries(
            {"time": st.floats(0, 1e9), "event": st.sampled_from([history.ENDED, history.RESTART, "left behind", "x"])},
            optional={"attempt": st.integers() | st.text(), "hosts": st.lists(st.text()) | st.none(), "kind": st.text(),
                      "name": st.text(), "step": st.text() | st.integers(), "bad": st.integers(), "next": st.text()},
        )
    )
)  # fmt: skip
def test_malformed_events_are_ignored(events: list[dict[str, Any]]) -> None:
    history.previous_attempts(events, 1)
    history.pending_outcome(events, 1)
    history.orphaned_hosts(events)
    history.render_lines(events)


def test_hosts_of_orphaned_attempts_are_read_from_events() -> None:
    events = [
        {"event": "left behind", "attempt": 1, "hosts": ["a", "b"]},
        {"event": "left behind", "attempt": 2, "hosts": ["c"]},
        {"event": "caught up", "attempt": 1, "hosts": ["a"]},
        {"event": "caught up", "attempt": 2, "hosts": ["c"]},
    ]
    assert history.orphaned_hosts(events) == {1: {"b"}}


# ---- quarantine


def test_lemons_are_stored_and_forgiven(tmp_path: Path) -> None:
    lemons = Quarantine(tmp_path / "jobs")
    assert lemons.all() == {}
    lemons.add({"b": Lemon("cannot be reached", 2.0, "gpt2"), "a": Lemon("GPU 3 is lost", 1.0, "gpt2")})
    assert list(lemons.all()) == ["a", "b"]
    assert stat.S_IMODE(lemons.path.stat().st_mode) == 0o600
    assert lemons.forgive("c") == []
    assert lemons.forgive("a") == ["a"]
    assert lemons.forgive("all") == ["b"]
    assert lemons.all() == {}


def test_lemons_added_concurrently_are_all_stored(tmp_path: Path) -> None:
    def add(number: int) -> None:
        Quarantine(tmp_path).add({f"node{number}": Lemon("sick", float(number), "x")})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(32)))
    assert len(Quarantine(tmp_path).all()) == 32


@pytest.mark.parametrize("text", ["", "[]", "3", '{"a": 1}', '{"a": {"reason": "x"}}'])
def test_a_malformed_list_of_lemons_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "lemons.json").write_text(text)
    with pytest.raises(TorchfabError, match="cannot be read as the list of lemons"):
        Quarantine(tmp_path).all()


# ---- locks


def test_a_second_supervisor_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    assert lease.holder(tmp_path) is None
    first = lease.SupervisorLease(tmp_path, "supervise-x")
    held = lease.holder(tmp_path)
    assert held is not None
    with pytest.raises(UsageError, match=f"has a supervisor already: pid {held['pid']} since .*, in tmux: supervise-x"):
        lease.SupervisorLease(tmp_path)
    first.release()
    assert lease.holder(tmp_path) is None
    lease.SupervisorLease(tmp_path).release()


def test_a_second_supervisor_in_tmux_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detach, "start", lambda *_: "supervise-x")
    make_request().save(tmp_path)
    config = {"restarts": 3, "stall_s": 300, "backoff_s": 10, "lost_s": 60, "notify_timeout_s": 10}
    ctx = CommandContext(config, tmp_path, "/", 0.0, "0a1b2c3d", {}, ConnectionSettings())
    job = (tmp_path, "x", "x-0a1b2c3d", "per-node", "tmux", 0.0, ("train.py",), NODES, "/x", 1, 1)
    first = lease.SupervisorLease(tmp_path)
    with pytest.raises(UsageError, match="has a supervisor already"):
        supervise.supervise_existing(
            Record(*job, ConnectionSettings(), {}, {}), SuperviseFlags(), False, True, ctx, ("fab",)
        )
    first.release()


def test_a_relaunch_after_a_stop_request_sees_it(tmp_path: Path) -> None:
    with lease.stopping(tmp_path):
        pass
    with lease.restarting(tmp_path):
        assert lease.stop_requested(tmp_path)


def test_stop_waits_for_a_relaunch_in_progress(tmp_path: Path) -> None:
    order = []

    def stop() -> None:
        with lease.stopping(tmp_path):
            order.append("stop")

    with lease.restarting(tmp_path):
        thread = threading.Thread(target=stop)
        thread.start()
        while not lease.stop_requested(tmp_path):
            pass
        order.append("launched")
    thread.join(10)
    assert order == ["launched", "stop"]


# ---- notifications


def test_delivery_failures_are_reported_by_target(tmp_path: Path) -> None:
    failures: list[str] = []
    for target in ("false", "/no/such/program", "http://127.0.0.1:9/secret"):
        notifier = Notifier(target, failures.append)
        notifier.send({"job": "x", "event": "end"})
        notifier.close()
    assert [text.partition(": ")[0] for text in failures] == [
        *("--notify false", "--notify /no/such/program", "--notify http://127.0.0.1:9"),
    ]


def test_a_command_gets_the_event_on_stdin_and_runs_without_a_shell(tmp_path: Path) -> None:
    failures: list[str] = []
    notifier = Notifier(f"cp /dev/stdin '{tmp_path}/$(id); x'", failures.append)
    notifier.send({"job": "x", "event": "end", "text": "it's over"})
    notifier.close()
    assert failures == []
    assert json.loads((tmp_path / "$(id); x").read_text()) == {"job": "x", "event": "end", "text": "it's over"}


def test_a_command_that_times_out_is_killed_with_its_children(tmp_path: Path) -> None:
    failures: list[str] = []
    supervise = tmp_path / "slow"
    supervise.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {tmp_path}/pid\nwait\n")
    supervise.chmod(0o755)
    notifier = Notifier(str(supervise), failures.append, timeout_s=1.0)
    notifier.send({"job": "x", "event": "end"})
    notifier.close()
    assert "timed out after 1.0 seconds" in failures[0]
    pid = int((tmp_path / "pid").read_text())
    assert not procfs.is_alive(pid, procfs.start_time(pid))


# ---- flags


@pytest.mark.parametrize(
    ("flag", "text", "error"),
    [
        ("restarts", "-1", "--restarts is a number of at least 0, got '-1'"),
        ("stall", "soon", "--stall is a number of seconds, got 'soon'"),
        ("backoff", "-3", "--backoff is a number of seconds, got '-3'"),
        ("notify", "'open", '--notify "\'open": No closing quotation'),
    ],
)
def test_a_wrong_flag_is_an_error_that_names_it(flag: str, text: str, error: str) -> None:
    with pytest.raises(UsageError) as caught:
        SuperviseFlags(notify=parse(LaunchFlags, {flag: text}).notify).policy(Policy())
    assert error in str(caught.value)


def test_flags_that_are_not_given_change_nothing() -> None:
    before = Policy(restarts=7, notify="tell")
    assert SuperviseFlags().policy(before) == before
    assert SuperviseFlags(0, 5.0, 1.0, "x").policy(before) == Policy(0, 5.0, 1.0, before.lost_s, "x")

"""Supervision: what is decided, what is remembered, whom it tells."""

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

from tests.records.test_launch_request import NODES, make_asked
from tests.support import fuzzed
from tests.why import evidence_factory
from tests.why.evidence_factory import told
from torchfab.cli.flags import LaunchFlags
from torchfab.commands import supervise
from torchfab.commands.supervise import SuperviseFlags
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import TorchfabError, UsageError
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


def numbered(endings: Sequence[AttemptOutcome]) -> list[AttemptOutcome]:
    return [replace(ending, attempt=number) for number, ending in enumerate(endings, start=1)]


def decided(*endings: AttemptOutcome, policy: Policy = POLICY) -> Decision:
    """Return the decision on the last of these endings; nodes that are bad or blamed were replaced."""
    *before, last = numbered(endings)
    return decide([PreviousAttempt(each, bool(each.bad or each.blamed)) for each in before], last, policy)


def at(ending: AttemptOutcome, step: int | None, lived_s: float = 0.0) -> AttemptOutcome:
    return replace(ending, step=step, lived_s=lived_s)


# ---- what is decided


@pytest.mark.parametrize(
    ("endings", "restart", "words"),
    [
        pytest.param([replace(BUG, kind="succeeded")], False, "", id="success is the end"),
        pytest.param([replace(BUG, kind="stopped")], False, "", id="what was asked to stop stays so"),
        pytest.param([BUG], True, "restart 1 of 2", id="a first traceback may be bad luck"),
        pytest.param([BUG, BUG], False, "the same failure as in attempt 1", id="the same twice is a bug"),
        pytest.param([BUG, at(BUG, 20)], True, "restart 1 of 2", id="unless there was progress"),
        pytest.param([BUG, at(BUG, 20), at(BUG, 20)], False, "in attempt 2", id="progress forgives what was before"),
        pytest.param([BUG, replace(BUG, fingerprint="other")], True, "restart 2 of 2", id="two bugs are not the same"),
        pytest.param([BUG, KILLED, BUG], False, "in attempt 1", id="the same bug with another failure between"),
        pytest.param([KILLED, KILLED], True, "restart 2 of 2", id="being killed twice is no bug of the script"),
        pytest.param([KILLED] * 3, False, "2 restarts without progress", id="restarts run out"),
        pytest.param([KILLED, KILLED, at(KILLED, 11)], True, "restart 1 of 2", id="counted anew after progress"),
        pytest.param([HANG, HANG, HANG], False, "2 restarts without progress", id="so do those for hangs"),
        pytest.param([LOST], True, "a node is replaced", id="a lost node is replaced"),
        pytest.param([KILLED, KILLED, LOST], True, "a node is replaced", id="replacing uses up no restart"),
        pytest.param([LOST, LOST, LOST, LOST, KILLED], True, "restart 1 of 2", id="and did not before"),
        pytest.param([BUG, replace(BUG, bad={"b": "sick"})], True, "a node is replaced", id="a sick node goes first"),
        pytest.param([FULL], True, "a node is replaced", id="a script's word against a node counts once"),
        pytest.param([FULL, replace(FULL, blamed=("c",))], False, "the same on b, c", id="twice, it is not the node"),
        pytest.param([FULL, at(FULL, 20)], True, "a node is replaced", id="unless there was progress between"),
        pytest.param([at(BUG, None), at(BUG, None, 601)], True, "restart 1 of 2", id="without steps, 10 minutes count"),
        pytest.param([at(BUG, None, 900), at(BUG, None, 599)], False, "in attempt 1", id="and less is none"),
        pytest.param([BUG, at(BUG, None, 900)], False, "in attempt 1", id="of a script with steps only steps count"),
        pytest.param([at(BUG, 30), at(BUG, 20)], False, "in attempt 1", id="steps made before are no progress"),
    ],
)  # fmt: skip
def test_what_is_decided(endings: list[AttemptOutcome], restart: bool, words: str) -> None:
    decision = decided(*endings)
    assert (decision.restart, words in decision.reason) == (restart, True), decision


def test_the_bad_nodes_are_dropped_each_with_its_reason() -> None:
    assert decided(LOST).drop == {"b": "cannot be reached"}
    assert decided(FULL).drop == {"b": "no space was left"}


def test_waits_double_and_are_capped() -> None:
    policy = Policy(restarts=9, backoff_s=10)
    waits = [decided(*[KILLED] * count, policy=policy).wait_s for count in range(1, 10)]
    assert waits == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert decided(LOST).wait_s == 0


ENDINGS = st.lists(
    st.builds(
        replace, st.sampled_from([BUG, KILLED, HANG, LOST, FULL]), step=st.none() | st.integers(0, 3),
        lived_s=st.sampled_from([1.0, 700.0]),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@given(ENDINGS, st.integers(0, 4))
def test_restarts_without_progress_are_never_more_than_allowed(endings: list[AttemptOutcome], restarts: int) -> None:
    policy = Policy(restarts=restarts)
    decision = decided(*endings, policy=policy)
    assert 0 <= decision.used <= restarts
    assert 0 <= decision.wait_s <= LONGEST_WAIT_S
    assert decision.reason
    assert not (decision.drop and not decision.restart)


@given(ENDINGS)
def test_a_job_that_fails_for_ever_without_progress_ends(endings: list[AttemptOutcome]) -> None:
    stuck = [replace(each, step=0, lived_s=1.0, bad={}, blamed=()) for each in endings]
    count = len(stuck)
    while decided(*stuck, policy=Policy(restarts=3)).restart:
        stuck.append(stuck[-1])
        assert len(stuck) <= count + 4


@given(ENDINGS)
def test_what_comes_before_progress_does_not_matter(endings: list[AttemptOutcome]) -> None:
    fresh = at(KILLED, 99)
    assert decided(*endings, fresh).reason == decided(fresh).reason


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
def test_a_step_in_a_log_line(text: str, step: int | None) -> None:
    assert step_in(text) == step


@fuzzed(st.text())
def test_any_line_may_come(text: str) -> None:
    step = step_in(text)
    assert step is None or step >= 0


# ---- what becomes of a node that has told its end is no matter


def eyes_on(*states: str, min_nodes: int) -> AttemptMonitor:
    """Return eyes that heard how the job ended on some nodes, of three, all of which are out of reach but the last."""
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
    eyes = AttemptMonitor(Record(*job, ConnectionSettings(), {}, {}), POLICY, 0.0, lambda: False, lambda *_, **__: None)
    eyes.ended = {rank: NodeStatus(nodes[rank], state) for rank, state in enumerate(states)}
    eyes.polled = {2: NodeStatus(nodes[2], "running")}
    eyes.away = {rank: time.monotonic() - 1000 for rank in (0, 1)}
    return eyes


def test_a_node_that_is_switched_off_after_its_success_is_not_lost() -> None:
    assert eyes_on("succeeded", "succeeded", min_nodes=3)._judge() is None
    assert eyes_on("succeeded", min_nodes=3)._judge() == "lost"


def test_a_node_that_succeeded_and_went_away_does_not_stand_for_one_that_runs() -> None:
    assert eyes_on("succeeded", "succeeded", min_nodes=2)._judge() is None


def test_a_job_that_has_succeeded_everywhere_is_not_run_again_because_a_node_cannot_be_asked_any_more() -> None:
    nodes = tuple(NodeStatus(Node(rank, f"node{rank + 1}"), "succeeded") for rank in (0, 1))
    later = told(
        evidence_factory.node(0, [evidence_factory.process("succeeded", evidence_factory.rank(0, 0))]),
        evidence_factory.unreachable(1),
    )
    assert outcome._kind(later, Trigger("ended", JobStatus(nodes, 2), None))[0] == "succeeded"


# ---- what is remembered


def as_events(pasts: Sequence[PreviousAttempt]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [{"time": 0.0, "event": "planned"}]
    for past in pasts:
        following = past.outcome.attempt + 1
        events += [
            {"time": 1.0, "event": history.ENDED, **history.of_ending(past.outcome)},
            {"time": 2.0, "event": history.RESTART, "replaced": past.replaced, "next": following},
        ]
    return json.loads(json.dumps(events))  # type: ignore[no-any-return]


@given(ENDINGS, st.booleans())
def test_the_history_is_read_back_from_the_events(endings: list[AttemptOutcome], replaced: bool) -> None:
    pasts = [PreviousAttempt(ending, replaced) for ending in numbered(endings)]
    attempt = len(endings) + 1
    assert history.history(as_events(pasts), attempt) == tuple(pasts)
    assert history.open_ending(as_events(pasts), attempt) is None


@given(ENDINGS)
def test_a_restart_that_never_came_about_leaves_the_ending_open(endings: list[AttemptOutcome]) -> None:
    pasts = [PreviousAttempt(ending) for ending in numbered(endings)]
    attempt = len(endings)
    assert history.open_ending(as_events(pasts), attempt) == pasts[-1].outcome
    assert history.history(as_events(pasts), attempt) == tuple(pasts[:-1])


@given(
    st.lists(
        st.fixed_dictionaries(
            {"time": st.floats(0, 1e9), "event": st.sampled_from([history.ENDED, history.RESTART, "left behind", "x"])},
            optional={"attempt": st.integers() | st.text(), "hosts": st.lists(st.text()) | st.none(), "kind": st.text(),
                      "name": st.text(), "step": st.text() | st.integers(), "bad": st.integers(), "next": st.text()},
        )
    )
)  # fmt: skip
def test_events_that_are_broken_break_nothing(events: list[dict[str, Any]]) -> None:
    history.history(events, 1)
    history.open_ending(events, 1)
    history.left_behind(events)
    history.lines(events)


def test_where_an_earlier_attempt_may_still_run_is_remembered() -> None:
    events = [
        {"event": "left behind", "attempt": 1, "hosts": ["a", "b"]},
        {"event": "left behind", "attempt": 2, "hosts": ["c"]},
        {"event": "caught up", "attempt": 1, "hosts": ["a"]},
        {"event": "caught up", "attempt": 2, "hosts": ["c"]},
    ]
    assert history.left_behind(events) == {1: {"b"}}


# ---- lemons


def test_lemons_are_kept_and_forgiven(tmp_path: Path) -> None:
    lemons = Quarantine(tmp_path / "jobs")
    assert lemons.all() == {}
    lemons.add({"b": Lemon("cannot be reached", 2.0, "gpt2"), "a": Lemon("GPU 3 is lost", 1.0, "gpt2")})
    assert list(lemons.all()) == ["a", "b"]
    assert stat.S_IMODE(lemons.path.stat().st_mode) == 0o600
    assert lemons.forgive("c") == []
    assert lemons.forgive("a") == ["a"]
    assert lemons.forgive("all") == ["b"]
    assert lemons.all() == {}


def test_lemons_that_are_found_at_once_are_all_kept(tmp_path: Path) -> None:
    def add(number: int) -> None:
        Quarantine(tmp_path).add({f"node{number}": Lemon("sick", float(number), "x")})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(32)))
    assert len(Quarantine(tmp_path).all()) == 32


@pytest.mark.parametrize("text", ["", "[]", "3", '{"a": 1}', '{"a": {"reason": "x"}}'])
def test_a_list_of_lemons_that_is_none_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "lemons.json").write_text(text)
    with pytest.raises(TorchfabError, match="cannot be read as the list of lemons"):
        Quarantine(tmp_path).all()


# ---- who may act


def test_one_supervisor_at_a_time_and_the_second_hears_who_it_is(tmp_path: Path) -> None:
    assert lease.holder(tmp_path) is None
    first = lease.SupervisorLease(tmp_path, "supervise-x")
    held = lease.holder(tmp_path)
    assert held is not None
    with pytest.raises(UsageError, match=f"has a supervisor already: pid {held['pid']} since .*, in tmux: supervise-x"):
        lease.SupervisorLease(tmp_path)
    first.release()
    assert lease.holder(tmp_path) is None
    lease.SupervisorLease(tmp_path).release()


def test_a_second_supervisor_in_tmux_is_refused_and_not_taken_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detach, "start", lambda *_: "supervise-x")
    make_asked().save(tmp_path)
    config = {"restarts": 3, "stall_s": 300, "backoff_s": 10, "lost_s": 60, "notify_timeout_s": 10}
    ctx = CommandContext(config, tmp_path, "/", 0.0, "0a1b2c3d", {}, ConnectionSettings())
    job = (tmp_path, "x", "x-0a1b2c3d", "per-node", "tmux", 0.0, ("train.py",), NODES, "/x", 1, 1)
    first = lease.SupervisorLease(tmp_path)
    with pytest.raises(UsageError, match="has a supervisor already"):
        supervise.take_up(Record(*job, ConnectionSettings(), {}, {}), SuperviseFlags(), False, True, ctx, ("fab",))
    first.release()


def test_stop_is_seen_by_a_restart_that_comes_later(tmp_path: Path) -> None:
    with lease.stopping(tmp_path):
        pass
    with lease.restarting(tmp_path):
        assert lease.stop_asked(tmp_path)


def test_stop_waits_for_a_restart_that_is_under_way(tmp_path: Path) -> None:
    order = []

    def stop() -> None:
        with lease.stopping(tmp_path):
            order.append("stop")

    with lease.restarting(tmp_path):
        thread = threading.Thread(target=stop)
        thread.start()
        while not lease.stop_asked(tmp_path):
            pass
        order.append("launched")
    thread.join(10)
    assert order == ["launched", "stop"]


# ---- whom it tells


def test_a_notifier_that_fails_is_told_and_nothing_more(tmp_path: Path) -> None:
    told: list[str] = []
    for target in ("false", "/no/such/program", "http://127.0.0.1:9/secret"):
        notifier = Notifier(target, told.append)
        notifier.tell({"job": "x", "event": "end"})
        notifier.close()
    assert [text.partition(": ")[0] for text in told] == [
        *("--notify false", "--notify /no/such/program", "--notify http://127.0.0.1:9"),
    ]


def test_a_command_gets_the_event_on_stdin_and_its_words_without_a_shell(tmp_path: Path) -> None:
    told: list[str] = []
    notifier = Notifier(f"cp /dev/stdin '{tmp_path}/$(id); x'", told.append)
    notifier.tell({"job": "x", "event": "end", "text": "it's over"})
    notifier.close()
    assert told == []
    assert json.loads((tmp_path / "$(id); x").read_text()) == {"job": "x", "event": "end", "text": "it's over"}


def test_a_command_that_takes_too_long_ends_with_all_that_it_has_started(tmp_path: Path) -> None:
    told: list[str] = []
    supervise = tmp_path / "slow"
    supervise.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {tmp_path}/pid\nwait\n")
    supervise.chmod(0o755)
    notifier = Notifier(str(supervise), told.append, timeout_s=1.0)
    notifier.tell({"job": "x", "event": "end"})
    notifier.close()
    assert "timed out after 1.0 seconds" in told[0]
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


def test_what_is_not_wished_stays_as_it_was() -> None:
    before = Policy(restarts=7, notify="tell")
    assert SuperviseFlags().policy(before) == before
    assert SuperviseFlags(0, 5.0, 1.0, "x").policy(before) == Policy(0, 5.0, 1.0, before.lost_s, "x")

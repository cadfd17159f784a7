"""The hang alarm: for how long a job has been silent, by its nodes' own clocks, and what is said about it."""

from __future__ import annotations

import json
import queue
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.test_status import NOW, node, process, rank
from tests.factories import make_nodes
from torchfab.config.validate import check
from torchfab.core import stall
from torchfab.core.errors import UsageError
from torchfab.core.stall import Quiet
from torchfab.core.status import JobStatus, NodeStatus
from torchfab.monitoring.stall_alarm import Alarm


def line(age_s: float, text: str = "step 9", label: int | str = 0, skew_s: float = 0.0) -> dict[str, Any]:
    return {"time": NOW + skew_s - age_s, "text": text, "label": label}


def running(index: int, age_s: float | None, skew_s: float = 0.0, **values: Any) -> NodeStatus:
    """Return a node with one running rank, which logged `age_s` seconds ago."""
    started: dict[str, Any] = {"started": NOW + skew_s - 900}
    last = None if age_s is None else line(age_s, f"step {index}", index, skew_s)
    return node(index, process("running", rank(index, **started), last_line=last, **started, **values), skew_s=skew_s)


def job(*nodes: NodeStatus) -> JobStatus:
    return JobStatus(nodes, len(nodes))


# ---- how long


def test_a_job_is_silent_since_the_rank_that_logged_last() -> None:
    found = stall.quiet(job(running(0, 400.0), running(1, 320.0)))
    assert found == Quiet(320.0, "node1", 1, "step 1")


def test_one_rank_that_logs_is_enough() -> None:
    assert stall.find(job(running(0, 4000.0), running(1, 2.0)), 300) is None


@given(st.lists(st.tuples(st.floats(0, 800), st.floats(-1e5, 1e5)), min_size=1, max_size=5))
def test_wrong_clocks_change_nothing(ages: list[tuple[float, float]]) -> None:
    found = stall.quiet(job(*[running(index, age, skew) for index, (age, skew) in enumerate(ages)]))
    assert found is not None
    assert found.seconds == pytest.approx(min(age for age, _ in ages), abs=1e-3)


def test_a_rank_that_never_logged_is_silent_since_its_start() -> None:
    assert stall.quiet(job(running(0, None))) == Quiet(900.0)


def test_a_rank_that_was_started_again_is_a_sign_of_life_and_the_last_line_another_ones() -> None:
    again = process("running", rank(0, started=NOW - 700), rank(0, attempt=1, started=NOW - 20), last_line=line(500))
    found = stall.quiet(job(node(0, again), running(1, 600)))
    assert found == Quiet(20.0, "node0", 0, "step 9")


def test_an_agent_that_waits_for_a_node_that_never_comes_is_silent_too() -> None:
    assert stall.find(job(node(0, process("running", started=NOW - 500))), 300) is not None


@pytest.mark.parametrize("state", ["starting", "succeeded", "failed", "stopped", "lost"])
def test_what_does_not_run_is_not_silent(state: str) -> None:
    assert stall.quiet(job(node(0, process(state, rank(0), last_line=line(500))))) is None


def test_a_launcher_whose_ranks_have_all_ended_is_not_silent() -> None:
    assert stall.quiet(job(node(0, process("running", rank(0, code=0, ended=940.0), last_line=line(500))))) is None


def test_a_job_that_has_failed_is_not_silent_but_failed() -> None:
    failed = node(1, process("failed", rank(1, code=7, ended=940.0)))
    assert stall.quiet(job(running(0, 500), failed)) is None


@pytest.mark.parametrize(("stall_s", "told"), [(300, True), (400.0, True), (401, False), (0, False)])
def test_the_alarm_has_a_threshold_and_zero_is_never(stall_s: float, told: bool) -> None:
    assert (stall.find(job(running(0, 400.0)), stall_s) is not None) is told


# ---- the words


def test_the_words_name_how_long_who_logged_what_last_and_what_to_do() -> None:
    lost = NodeStatus(make_nodes("node0", "node1")[1], "unreachable", "no answer")
    found = stall.find(job(running(0, 754.0), lost), 300)
    assert found is not None
    assert stall.words(found, "gpt2").splitlines() == [
        "gpt2: no rank has logged for 12 min 34 s (node1 cannot be asked): it may hang",
        "  the last line: node0 [0] step 0",
        "  what each rank is doing: fab stacks gpt2",
    ]


def test_the_words_of_a_job_that_never_logged() -> None:
    words = stall.words(Quiet(301.0), "gpt2")
    assert "nothing was logged since it was started" in words


def test_a_last_line_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in stall.words(Quiet(301.0, "node0", 0, "\x1b[2Jstep"), "gpt2")


def test_the_json_says_the_same() -> None:
    found = stall.as_json(job(running(0, 320.0)), 300)
    wanted = {"stalled": True, "stall_s": 300, "silent_s": 320.0, "host": "node0", "rank": 0, "line": "step 0"}
    assert json.loads(json.dumps(found)) == wanted
    nothing = stall.as_json(job(node(0, process("succeeded"))), 300)
    assert (nothing["stalled"], nothing["silent_s"], nothing["host"]) == (False, None, None)


@pytest.mark.parametrize("value", [-1, "300", None, float("inf"), True])
def test_a_wrong_setting_is_named(value: object) -> None:
    with pytest.raises(UsageError, match=r"torchfab\.stall_s"):
        check({"stall_s": value})


# ---- who watches


class Watched:
    """A job whose silence we set, watched by an alarm of 0.2 s."""

    def __init__(self, stall_s: float = 0.2) -> None:
        self.asked: queue.SimpleQueue[float] = queue.SimpleQueue()
        self.age_s = 0.0
        self.alarm = Alarm("gpt2", stall_s, self.status)

    def status(self) -> JobStatus:
        self.asked.put(time.monotonic())
        return job(running(0, self.age_s))

    def pace(self, asks: int) -> None:
        """Let time pass until the job was asked so often, and what it said was taken in."""
        end = time.monotonic() + 20
        while self.asked.qsize() < asks or self.alarm.asking:
            assert time.monotonic() < end, f"it was asked {self.asked.qsize()} times, not {asks}"
            self.alarm.pace()
            time.sleep(0.01)


def test_a_silence_is_told_once_and_its_end_too(capfd: pytest.CaptureFixture[str]) -> None:
    watched = Watched()
    watched.age_s = 500.0
    watched.pace(asks=3)  # it goes on asking, and says nothing new
    said = capfd.readouterr().err
    assert said.count("no rank has logged for 8 min 20 s") == 1
    watched.alarm.hear([time.time()], live=True)
    watched.alarm.hear([time.time()], live=True)
    assert capfd.readouterr().err.count("it logs again, after 8 min") == 1


def test_a_job_that_logs_what_is_not_shown_here_is_not_silent(capfd: pytest.CaptureFixture[str]) -> None:
    watched = Watched()
    watched.age_s = 0.0
    watched.pace(asks=2)
    assert capfd.readouterr().err == ""


def test_its_end_is_also_told_when_the_lines_are_not_shown_here(capfd: pytest.CaptureFixture[str]) -> None:
    watched = Watched()
    watched.age_s = 500.0
    watched.pace(asks=1)
    watched.age_s = 0.1
    watched.pace(asks=3)
    assert "it logs again" in capfd.readouterr().err


def test_nobody_asks_while_lines_come(capfd: pytest.CaptureFixture[str]) -> None:
    watched = Watched(stall_s=60.0)
    watched.alarm.look_at = 0.0  # it was just about to
    watched.alarm.hear([time.time()], live=True)
    watched.alarm.pace()
    assert watched.asked.empty()
    assert capfd.readouterr().err == ""


def test_a_job_that_was_silent_long_before_one_looks_is_asked_at_once() -> None:
    watched = Watched(stall_s=50.0)
    watched.alarm.hear([time.time() - 3600], live=False)
    watched.pace(asks=1)


def test_an_alarm_that_is_off_asks_nothing() -> None:
    watched = Watched(stall_s=0.0)
    watched.alarm.pace()
    assert not watched.alarm.asking
    assert watched.asked.empty()

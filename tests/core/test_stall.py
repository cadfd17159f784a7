"""The silence of a job by its nodes' own clocks, and the warning about it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.test_status import NOW, node, process, rank
from tests.factories import make_nodes
from torchfab.core import stall
from torchfab.core.stall import Silence
from torchfab.core.status import JobStatus, NodeStatus, State


def line(age_s: float, text: str = "step 9", label: int | str = 0, skew_s: float = 0.0) -> dict[str, Any]:
    return {"time": NOW + skew_s - age_s, "text": text, "label": label}


def running(index: int, age_s: float | None, skew_s: float = 0.0, **values: Any) -> NodeStatus:
    """Return a node with one running rank, which logged `age_s` seconds ago."""
    started: dict[str, Any] = {"started": NOW + skew_s - 900}
    last = None if age_s is None else line(age_s, f"step {index}", index, skew_s)
    return node(index, process("running", rank(index, **started), last_line=last, **started, **values), skew_s=skew_s)


def job(*nodes: NodeStatus) -> JobStatus:
    return JobStatus(nodes, len(nodes))


# ---- duration


def test_silence_is_measured_from_the_last_rank_that_logged() -> None:
    found = stall.measure_silence(job(running(0, 400.0), running(1, 320.0)))
    assert found == Silence(320.0, "node1", 1, "step 1")


def test_one_logging_rank_prevents_the_alarm() -> None:
    assert stall.detect_stall(job(running(0, 4000.0), running(1, 2.0)), 300) is None


@given(st.lists(st.tuples(st.floats(0, 800), st.floats(-1e5, 1e5)), min_size=1, max_size=5))
def test_wrong_node_clocks_do_not_matter(ages: list[tuple[float, float]]) -> None:
    found = stall.measure_silence(job(*[running(index, age, skew) for index, (age, skew) in enumerate(ages)]))
    assert found is not None
    assert found.seconds == pytest.approx(min(age for age, _ in ages), abs=1e-3)


def test_a_rank_that_never_logged_is_measured_from_its_start() -> None:
    assert stall.measure_silence(job(running(0, None))) == Silence(900.0)


def test_a_restarted_rank_counts_as_active() -> None:
    again = process("running", rank(0, started=NOW - 700), rank(0, attempt=1, started=NOW - 20), last_line=line(500))
    found = stall.measure_silence(job(node(0, again), running(1, 600)))
    assert found == Silence(20.0, "node0", 0, "step 9")


def test_an_agent_that_waits_for_a_missing_node_is_silent() -> None:
    assert stall.detect_stall(job(node(0, process("running", started=NOW - 500))), 300) is not None


@pytest.mark.parametrize("state", ["starting", "succeeded", "failed", "stopped", "lost"])
def test_a_process_that_does_not_run_is_not_silent(state: str) -> None:
    assert stall.measure_silence(job(node(0, process(state, rank(0), last_line=line(500))))) is None


def test_a_launcher_whose_ranks_have_all_ended_is_not_silent() -> None:
    assert (
        stall.measure_silence(job(node(0, process("running", rank(0, code=0, ended=940.0), last_line=line(500)))))
        is None
    )


def test_a_failed_job_is_not_silent() -> None:
    failed = node(1, process("failed", rank(1, code=7, ended=940.0)))
    assert stall.measure_silence(job(running(0, 500), failed)) is None


@pytest.mark.parametrize(("stall_s", "is_stalled"), [(300, True), (400.0, True), (401, False), (0, False)])
def test_the_threshold_is_respected_and_zero_disables_it(stall_s: float, is_stalled: bool) -> None:
    assert (stall.detect_stall(job(running(0, 400.0)), stall_s) is not None) is is_stalled


# ---- the warning


def test_the_warning_has_duration_last_line_and_next_command() -> None:
    lost = NodeStatus(make_nodes("node0", "node1")[1], State.UNREACHABLE, "no answer")
    found = stall.detect_stall(job(running(0, 754.0), lost), 300)
    assert found is not None
    assert stall.render_warning(found, "gpt2").splitlines() == [
        "gpt2: no rank has logged for 12 min 34 s (node1 unreachable): it may hang",
        "  the last line: node0 [0] step 0",
        "  to see what each rank is doing: fab stacks gpt2",
    ]


def test_the_warning_for_a_job_that_never_logged() -> None:
    words = stall.render_warning(Silence(301.0), "gpt2")
    assert "nothing was logged since the start" in words


def test_the_last_line_is_stripped_of_escape_sequences() -> None:
    assert "\x1b" not in stall.render_warning(Silence(301.0, "node0", 0, "\x1b[2Jstep"), "gpt2")


def test_as_json_has_the_silence() -> None:
    found = stall.as_json(job(running(0, 320.0)), 300)
    expected = {"stalled": True, "stall_s": 300, "silent_s": 320.0, "host": "node0", "rank": 0, "line": "step 0"}
    assert json.loads(json.dumps(found)) == expected
    nothing = stall.as_json(job(node(0, process("succeeded"))), 300)
    assert (nothing["stalled"], nothing["silent_s"], nothing["host"]) == (False, None, None)

"""The status of a job, computed from the answers of its nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import make_nodes
from torchfab.core import status
from torchfab.core.status import Failure, JobStatus, LastLine, NodeStatus, State, StatusReport

NOW = 1000.0


def rank(number: int | None, code: int | None = None, ended: float | None = None, **values: Any) -> dict[str, Any]:
    base = {"rank": number, "local_rank": 0, "world_size": 4, "attempt": 0, "pid": 100 + (number or 0), "start_time": 5}
    return {**base, "started": 900.0, "ended": ended, "code": code, **values}


def line(time: float, text: str, label: int | str = 0) -> dict[str, Any]:
    """Return the last line of a process as a node reports it."""
    return {"time": time, "text": text, "label": label}


def process(state: str, *ranks: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """Return a node's answer about one process."""
    has_ended = state not in ("starting", "running")
    base = {
        "name": "agent",
        "state": state,
        "reason": "",
        "pid": None if state == "starting" else 99,
        "started": None if state == "starting" else 900.0,
        "ended": 950.0 if has_ended and state != "lost" else None,
        "code": {"succeeded": 0, "failed": 1, "stopped": 1}.get(state),
        "signal": None,
        "warned": None,
        "ranks": list(ranks),
        "last_line": None,
        "reported": [],
    }
    return {**base, **values}


def node(index: int, *processes: Mapping[str, Any], skew_s: float = 0.0, **values: Any) -> NodeStatus:
    """Return a node's status as its answer would give it; its clock is `skew_s` ahead."""
    (found,) = [each for each in make_nodes(*[f"node{number}" for number in range(index + 1)]) if each.rank == index]
    answer = {"processes": list(processes), "now": NOW + skew_s, "exists": True, "stop_asked": None, **values}
    return status.from_answer(found, msgspec.convert(answer, StatusReport), NOW - 0.5, NOW + 0.5)


def job(*states: str, min_nodes: int = 0) -> JobStatus:
    """Return a job with one process of each state on a node of its own; `unreachable` is a node's."""
    nodes = [
        NodeStatus(make_nodes("x")[0], State.UNREACHABLE, "no answer")
        if state == "unreachable"
        else node(index, process(state))
        for index, state in enumerate(states)
    ]
    return JobStatus(tuple(nodes), min_nodes)


# ---- states


@pytest.mark.parametrize(
    ("states", "state", "ended", "code"),
    [
        (["starting"], "starting", False, None),
        (["running"], "running", False, None),
        (["succeeded"], "succeeded", True, 0),
        (["failed"], "failed", True, 1),
        (["lost"], "lost", True, 1),
        (["unreachable"], "unreachable", False, None),
        (["running", "running"], "running", False, None),
        (["starting", "running"], "starting", False, None),
        (["running", "succeeded"], "running", False, None),
        (["running", "unreachable"], "unreachable", False, None),
        (["succeeded", "unreachable"], "unreachable", False, None),
        (["succeeded", "succeeded"], "succeeded", True, 0),
        (["failed", "running"], "failed", False, 1),
        (["failed", "succeeded"], "failed", True, 1),
        (["failed", "unreachable"], "failed", False, 1),
        (["failed", "lost"], "failed", True, 1),
        (["lost", "running"], "lost", False, 1),
        (["lost", "succeeded"], "lost", True, 1),
    ],
)
def test_a_jobs_state_follows_from_its_nodes(states: list[str], state: str, ended: bool, code: int | None) -> None:
    found = job(*states)
    assert (found.state, found.has_ended, found.exit_code) == (state, ended, code)


@pytest.mark.parametrize(
    ("states", "min_nodes", "state", "code"),
    [
        (["failed", "running", "running"], 2, "running", None),
        (["failed", "succeeded", "succeeded"], 2, "succeeded", 0),
        (["lost", "succeeded", "succeeded"], 2, "succeeded", 0),
        (["failed", "failed", "running"], 2, "failed", 1),
        (["failed", "lost", "succeeded"], 2, "failed", 1),
        (["failed", "running"], 2, "failed", 1),
        (["lost", "unreachable", "running"], 2, "unreachable", None),
    ],
)
def test_an_elastic_job_continues_with_enough_nodes(
    states: list[str], min_nodes: int, state: str, code: int | None
) -> None:
    found = job(*states, min_nodes=min_nodes)
    assert (found.state, found.exit_code) == (state, code)


ANY_STATES = st.lists(
    st.sampled_from(["starting", "running", "succeeded", "failed", "stopped", "lost", "unreachable"]),
    min_size=1,
    max_size=6,
)


@given(ANY_STATES, st.integers(0, 6))
def test_state_and_exit_code_of_any_job_agree(states: list[str], min_nodes: int) -> None:
    found = job(*states, min_nodes=min(min_nodes, len(states)))
    assert (found.exit_code == 0) is (found.state == "succeeded")
    assert found.has_ended or found.exit_code != 0
    assert found.exit_code is None or 0 <= found.exit_code <= 255
    assert json.dumps(status.as_json("x", found))
    assert all(len(row) == 6 for row in status.table_rows(found))


@pytest.mark.parametrize(
    ("states", "state"),
    [
        (["running", "succeeded"], "running"),
        (["failed", "running"], "failed"),
        (["lost", "failed"], "lost"),
        (["stopped", "succeeded"], "stopped"),
        (["starting", "running"], "starting"),
        ([], "starting"),
    ],
)
def test_a_node_has_the_worst_state_of_its_processes(states: list[str], state: str) -> None:
    found = node(0, *[process(each) for each in states])
    assert found.state == state
    assert found.has_ended is (bool(states) and not {"running", "starting"} & set(states))


def test_a_node_without_the_jobs_folder_is_lost() -> None:
    found = node(0, exists=False)
    assert (found.state, found.reason) == ("lost", "the job's folder no longer exists on the node")


# ---- stopped


def test_a_stopped_job_exits_with_143() -> None:
    found = JobStatus((node(0, process("stopped"), stop_asked=940.0), node(1, process("stopped"), stop_asked=941.0)), 2)
    assert (found.state, found.exit_code) == ("stopped", 143)


def test_failures_after_the_stop_are_consequences() -> None:
    late = process("failed", rank(1, code=-6, ended=945.0))
    found = JobStatus((node(0, process("stopped"), stop_asked=940.0), node(1, late)), 2)
    assert (found.state, found.exit_code) == ("stopped", 143)


def test_a_lost_supervisor_without_a_stop_request_is_a_failure() -> None:
    # Its rank continued to log until after the other nodes were stopped because of it.
    lost = process("lost", last_line=line(945.0, "", label=1), reason="its supervisor was killed")
    found = JobStatus((node(0, process("stopped"), stop_asked=940.0), node(1, lost)), 2)
    assert (found.state, found.exit_code) == ("lost", 1)


def test_a_failure_before_the_stop_decides_the_state() -> None:
    early = process("failed", rank(1, code=7, ended=930.0))
    found = JobStatus((node(0, process("stopped"), stop_asked=940.0), node(1, early)), 2)
    assert (found.state, found.exit_code) == ("failed", 7)


def test_failure_and_stop_are_ordered_by_this_machines_clock() -> None:
    # By its own clock the rank failed at 1530; that clock is 600 s ahead.
    early = node(1, process("failed", rank(1, code=7, ended=1530.0)), skew_s=600.0)
    found = JobStatus((node(0, process("stopped"), stop_asked=940.0), early), 2)
    assert (found.state, found.exit_code) == ("failed", 7)


def test_a_job_that_succeeded_before_the_stop_has_succeeded() -> None:
    assert JobStatus((node(0, process("succeeded"), stop_asked=990.0),), 1).exit_code == 0


# ---- the first failure


def test_the_first_failure_is_the_earliest_by_corrected_clocks() -> None:
    fast = node(0, process("failed", rank(0, code=1, ended=1100.0), rank(1, code=-9, ended=1090.0)), skew_s=150.0)
    slow = node(1, process("failed", rank(2, code=3, ended=945.0)), skew_s=-2.0)
    found = JobStatus((fast, slow), 2)
    assert found.first_failure == Failure(940.0, "node0", 1, -9)
    assert found.exit_code == 137


@pytest.mark.parametrize(("code", "expected"), [(7, 7), (-9, 137), (-15, 143), (-6, 134), (255, 255)])
def test_the_exit_code_is_that_of_the_first_failed_rank(code: int, expected: int) -> None:
    assert JobStatus((node(0, process("failed", rank(0, code=code, ended=940.0))),), 1).exit_code == expected


def test_successful_ranks_are_not_failures() -> None:
    found = node(0, process("failed", rank(0, code=0, ended=930.0), rank(1, code=5, ended=940.0), rank(2)))
    assert status.find_failures(found) == [Failure(940.0, "node0", 1, 5)]


def test_the_launchers_report_is_used_without_failed_ranks() -> None:
    found = node(0, process("failed", reported=[{"rank": 3, "code": 7}, {"rank": 0, "code": 1}]))
    assert status.find_failures(found) == [Failure(950.0, "node0", 3, 7)]


def test_the_process_is_the_failure_without_failed_ranks() -> None:
    found = node(0, process("failed", code=2))
    assert status.find_failures(found) == [Failure(950.0, "node0", None, 2)]


def test_a_launcher_that_a_signal_ended_before_its_ranks_failed_first() -> None:
    ranks = [rank(0, code=-15, ended=951.0), rank(1, code=0, ended=952.0)]
    found = JobStatus((node(0, process("failed", *ranks, code=-9)),), 1)
    assert (found.first_failure, found.exit_code) == (Failure(950.0, "node0", None, -9), 137)


def test_a_rank_that_failed_before_its_launcher_was_killed_failed_first() -> None:
    found = JobStatus((node(0, process("failed", rank(0, code=3, ended=949.0), code=-9)),), 1)
    assert (found.first_failure, found.exit_code) == (Failure(949.0, "node0", 0, 3), 3)


def test_a_process_that_could_not_start_has_a_reason() -> None:
    reason = "cannot start /no/python: No such file or directory"
    found = JobStatus((node(0, process("failed", code=None, reason=reason, started=None)),), 1)
    assert (found.exit_code, str(found.first_failure)) == (1, f"node0 failed first ({reason})")


def test_a_lost_process_ends_at_its_last_line() -> None:
    lost = process("lost", reason="the node was restarted", last_line=line(920.0, "step 5"))
    assert status.find_failures(node(0, lost)) == [Failure(920.0, "node0", None, 1, "the node was restarted")]


def test_a_job_without_failures_has_no_first_failure() -> None:
    assert job("running", "succeeded").first_failure is None


@given(st.lists(st.tuples(st.integers(-64, 255), st.floats(1, 2000), st.floats(-500, 500)), min_size=1, max_size=6))
def test_the_first_failure_is_the_earliest_of_any_failures(ends: list[tuple[int, float, float]]) -> None:
    nodes = [
        node(index, process("failed", rank(index, code=code, ended=when)), skew_s=skew)
        for index, (code, when, skew) in enumerate(ends)
    ]
    first = JobStatus(tuple(nodes), len(nodes)).first_failure
    assert first is not None
    assert first.time == min(
        (when if code else 950.0) - each.skew_s for each, (code, when, _) in zip(nodes, ends, strict=True)
    )


# ---- details of a node


def test_a_restarted_rank_is_listed_once_with_its_latest_status() -> None:
    first, second = rank(0, code=1, ended=910.0, pid=5), rank(0, attempt=1, pid=6)
    found = node(0, process("running", first, rank(1), second))
    assert [(each.rank, each.pid) for each in found.ranks] == [(0, 6), (1, 101)]


def test_the_last_line_is_the_newest_of_all_processes() -> None:
    lines: Sequence[Any] = [line(5.0, "old"), line(7.0, "new"), None]
    found = node(0, *[process("running", last_line=each) for each in lines])
    assert found.last_line == LastLine(time=7.0, text="new", label=0)


def test_clock_skew_is_measured_at_the_middle_of_the_round_trip() -> None:
    assert node(0, process("running"), skew_s=3.0).skew_s == pytest.approx(3.0)


# ---- human-readable output and JSON


def test_status_table() -> None:
    nodes = (
        node(0, process("running", rank(0), rank(1), last_line=line(996.0, "step 12 loss 3.2"))),
        node(1, process("failed", rank(2, code=7, ended=940.0), rank(3, code=-15, ended=941.0))),
        NodeStatus(make_nodes("a", "b", "c")[2], State.UNREACHABLE, "no answer from c port 22 within 10 s"),
    )
    assert status.table_rows(JobStatus(nodes, 3)) == [
        ["node", "state", "ranks", "pids", "up", "last log line"],
        ["node0", "running", "0-1", "100,101", "1 min 40 s", "4 s ago: step 12 loss 3.2"],
        ["node1", "failed (rank 2 exit code 7)", "2-3", "102,103", "50 s", "-"],
        ["c", "unreachable (no answer from c port 22 within 10 s)", "-", "-", "-", "-"],
    ]


def test_many_nodes_with_equal_states_are_one_row() -> None:
    nodes = tuple(node(index, process("running", rank(2 * index), rank(2 * index + 1))) for index in range(20))
    assert status.table_rows(JobStatus(nodes, 20))[1:] == [["node[0-19]", "running", "0-39", "-", "1 min 40 s", "-"]]


def test_unsupervised_processes_are_counted() -> None:
    found = node(0, process("lost", reason="its supervisor was killed"), left=["5 (python)", "6 (python)"])
    words = status.table_rows(JobStatus((found,), 1))[1][1]
    assert words == "lost (its supervisor was killed), still running: 5 (python) and 1 more"


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exit code 0"), (7, "exit code 7"), (-9, "SIGKILL"), (-15, "SIGTERM"), (-99, "signal 99")]
)
def test_exit_codes_are_described(code: int, words: str) -> None:
    assert status.describe_exit_code(code) == words


def times_named(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a process or rank with the names that its times have in JSON."""
    return {{"started": "started_at", "ended": "ended_at"}.get(key, key): value for key, value in values.items()}


def test_status_json() -> None:
    failed = process("failed", rank(0, code=7, ended=940.0), last_line=line(990.0, "boom"))
    # As text, which has nothing of the enum and the structs.
    assert json.loads(json.dumps(status.as_json("gpt2", JobStatus((node(0, failed),), 1)))) == {
        "job": "gpt2",
        "state": "failed",
        "ended": True,
        "exit_code": 7,
        "reason": "",
        "first_failure": {"time": 940.0, "host": "node0", "rank": 0, "code": 7, "reason": "", "how": "", "process": ""},
        "nodes": [
            {
                "host": "node0",
                "node_rank": 0,
                "state": "failed",
                "reason": "",
                "ended": True,
                "ranks": [times_named(rank(0, code=7, ended=940.0))],
                "processes": [times_named({key: failed[key] for key in failed if key not in ("ranks", "reported")})],
                "last_line": {"text": "boom", "age_s": 10.0},
                "clock_skew_s": 0.0,
                "left": [],
            }
        ],
    }

"""status, logs, wait, attach, stop and jobs with wrong arguments, without a job, and with an unreachable node."""

from __future__ import annotations

import time

import pytest

from tests.integration.fab import Fab
from tests.integration.faults_injected import refused

TASKS = ("status", "logs", "why", "wait", "attach", "stop")


@pytest.mark.parametrize("task", TASKS)
def test_without_any_job_the_error_shows_how_to_launch_one(fab: Fab, task: str) -> None:
    refused(fab(task), "no job was launched from here yet", "fix: fab launch-per-node --follow")


@pytest.mark.parametrize("name", ["nope", "../x"])
@pytest.mark.parametrize("words", [(task,) for task in TASKS] + [("jobs",), ("jobs", "--remove")], ids=" ".join)
def test_an_unknown_job_is_an_error_that_lists_the_known_ones(fab: Fab, words: tuple[str, ...], name: str) -> None:
    refused(fab(*words, name), f"no job {name!r} was launched from here", "jobs known here: none")


WRONG_WORDS = {
    "an empty job": (("stop", ""), "the name of the job is empty"),
    "a flag that is none": (("status", "--nope"), "status has no flag --nope"),
    "two jobs": (("logs", "a", "b"), "logs takes one job, got 'b' in addition"),
    "lines": (("logs", "--lines", "x"), "--lines must be all or a number, got 'x'"),
    "no lines": (("logs", "--lines", "-3"), "--lines must be all or a number, got '-3'"),
    "ranks": (("logs", "--rank", "x"), "--rank x: 'x' is not a rank"),
    "ranks backwards": (("logs", "--rank", "5-2"), "--rank 5-2: '5-2' is not a rank"),
    "an expression": (("logs", "--grep", "("), "--grep '(' is not a regular expression"),
    "a grace": (("stop", "--grace", "soon"), "--grace must be a number of seconds, got 'soon'"),
    "nothing to remove": (("jobs", "--remove"), "--remove needs the name of a job"),
}


@pytest.mark.parametrize("case", WRONG_WORDS)
def test_wrong_words_are_refused(fab: Fab, case: str) -> None:
    words, expected = WRONG_WORDS[case]
    refused(fab(*words), expected)


def test_unknown_ranks_nodes_and_terminals_of_a_job_are_errors(fab: Fab) -> None:
    assert fab(*fab.launch("--name", "x", gpus=True)).rc == 0
    refused(fab("logs", "--rank", "0,99"), "job x has the ranks 0-3, and no rank 99")
    refused(fab("attach", "--node", "node9"), "job x has no node 'node9'", "its nodes: node[1-2]")
    refused(fab("attach", "--rank", "9"), "no node runs rank '9'")
    refused(fab("attach"), "fab attach needs a terminal", "without one: fab logs --follow")
    refused(fab("jobs", "--remove", "x"), "job x has not ended", "fix: fab stop x")
    assert len(fab.processes()) == 6  # on each node one supervisor and two ranks


def test_a_stop_repeated_is_harmless(fab: Fab) -> None:
    assert fab(*fab.launch("--name", "x", gpus=True)).rc == 0
    first, second = (fab("stop", "x", "--grace", "1") for _ in range(2))
    assert (first.rc, second.rc) == (0, 0), first
    assert "2 processes ended within" in first.stdout, first
    assert "node[1-2]: none of its processes was running\n" in second.stdout, second
    for done in (first, second):
        assert "job x: stopped, no process of it is left on 2 nodes (verified by " in done.stdout, done
    assert fab("wait", "x").rc == 143


def test_an_unreachable_node_is_named_and_the_others_answer(fab: Fab) -> None:
    assert fab(*fab.launch("--name", "x", gpus=True)).rc == 0
    expected = "no answer from 10.77."
    fab.cluster.partition(1)
    begun = time.monotonic()
    try:
        status, logs, jobs, stop, removed, attach = (
            fab("-t", "1", *words)
            for words in (
                ("status", "x"),
                ("logs", "x"),
                ("jobs",),
                ("stop", "x", "--grace", "1"),
                ("jobs", "--remove", "x"),
                ("attach", "x", "--node", "node2"),
            )
        )
    finally:
        fab.cluster.heal(1)
    assert time.monotonic() - begun < 60
    assert "node1  running" in status.stdout, status
    assert f"node2  unreachable ({expected}" in status.stdout, status
    assert status.rc == 1
    assert "node1 [0-1] light 60" in logs.stdout, logs
    assert f"node2: {expected}" in logs.stderr, logs
    assert "trying again" not in logs.stderr, logs
    assert logs.rc == 1
    assert "x    unreachable" in jobs.stdout, jobs
    assert "node1: 2 processes ended" in stop.stdout, stop
    assert "error: 1 of 2 nodes could not be reached to stop the job\n  node2: no answer from" in stop.stderr, stop
    assert "when they are reachable again: fab stop x" in stop.stderr, stop
    assert stop.rc == 1
    refused(removed, "node2 cannot report whether job x has ended there", str(fab.records / "x"))
    refused(attach, f"node2 cannot be reached: {expected}")
    assert fab("stop", "x", "--grace", "1").rc == 0
    assert fab("jobs", "--remove", "x").rc == 0
    fab.assert_nothing_left()


def test_a_broken_record_does_not_break_the_others(fab: Fab) -> None:
    assert fab(*fab.launch("--name", "x", "--", "light.py", "0", gpus=True)).rc == 0
    broken = fab.records / "broken"
    broken.mkdir()
    (broken / "record.json").write_text('{"format": 1')
    jobs = fab("jobs")
    assert jobs.rc == 0, jobs
    assert "\nx    " in jobs.stdout, jobs
    refused(fab("status", "broken"), f"{broken}/record.json: not a record of torchfab", "move it away")
    refused(fab(*fab.launch("--name", "broken", gpus=True)), "there is a job broken already")

"""The sender of a signal, found in the logs of torchrun and deepspeed's launcher and in the records of supervisors.

The log lines are those of torch 2.13 and deepspeed 0.19: some as printed, with pids that the tests fill in, others made
from the format strings in the sources of these programs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.why.evidence_factory import diagnose_nodes, log, node, process, rank
from torchfab.why.causes import Kind
from torchfab.why.diagnosis import Diagnosis
from torchfab.why.evidence import Log, NodeEvidence

SERVER = "torch/distributed/elastic/agent/server/api.py:753]"
PROCESSES = "torch/distributed/elastic/multiprocessing/api.py"
RECEIVED_SIGNAL = f"W1121 13:12:37.873000 860 {SERVER} Received 15 death signal, shutting down workers\n"
CLOSING = f"W1121 13:12:37.874000 860 {PROCESSES}:1028] Sending process {{}} closing signal SIGTERM\n"
FAILED = (
    f"E1121 13:12:38.001000 860 {PROCESSES}:1002] failed (exitcode: {{}}) local_rank: 0 (pid: {{}}) of binary: python\n"
)
UNABLE = (
    f"W1121 13:13:07.905000 860 {PROCESSES}:1044] Unable to shutdown process {{}} via 15, forcefully exiting via 9\n"
)
LOST_STORE = """\
Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/torch/distributed/elastic/rendezvous/c10d_rendezvous_backend.py", line 114
torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: The connection to the C10d store has failed.
"""
SIGNALLED = """\
Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/torch/distributed/elastic/multiprocessing/api.py", line 95, in _handler
    raise SignalException(f"Process {os.getpid()} got signal: {sigval}", sigval=sigval)
torch.distributed.elastic.multiprocessing.api.SignalException: Process 50 got signal: 15
"""
DEEPSPEED = """\
[2026-11-21 13:12:37,000] [INFO] [launch.py:253:sigkill_handler] Killing subprocess 100
[2026-11-21 13:12:37,001] [INFO] [launch.py:262:sigkill_handler] Main process received SIGTERM, exiting
"""
EXIT_RECORD: dict[str, Any] = {"asked": None, "killed": [], "time": 1061.0}


def torchrun_node(output: str, *ranks: Any, at: int = 0, end: Any = EXIT_RECORD, **more: Any) -> NodeEvidence:
    """Return a node whose torchrun logged this output and exited with code 1."""
    ends = {"agent": end} if end else {}
    return node(at, [process("failed", *ranks, **more)], [log("agent", output, path="output.log")], ends=ends)


def cause(*nodes: NodeEvidence) -> tuple[Kind, str, str]:
    found = diagnose_nodes(*nodes).cause
    return found.kind, found.name, found.words


def first_and_consequences(found: Diagnosis) -> tuple[str, tuple[str, ...]]:
    assert found.first
    return found.first.label, found.consequences


def test_signal_to_torchrun_is_the_first_failure() -> None:
    lost = "RuntimeError: [/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:24750"
    other = node(0, [process("failed", rank(0, 1, 1060.5))], [log(0, f"Traceback (most recent call last):\n{lost}\n")])
    asked = torchrun_node(RECEIVED_SIGNAL + CLOSING.format(101), rank(1, -15, 1060.2), at=1)
    found = diagnose_nodes(other, asked)
    assert (found.cause.kind, found.cause.name) == (Kind.KILLED, "terminated")
    assert found.cause.words == (
        "torchrun received SIGTERM, and its ranks with it; not sent by fab stop or its supervisor"
    )
    assert first_and_consequences(found) == (
        *("rank 1 on node2", ("node1 rank 0: its connection to another rank was lost",)),
    )


def test_sender_is_unknown_without_an_exit_record_of_the_supervisor() -> None:
    assert cause(torchrun_node(RECEIVED_SIGNAL, rank(0, -15), end=None))[2].endswith("; its sender is unknown")


def test_signal_messages_of_all_torchrun_versions_are_parsed() -> None:
    for signal in ("Signals.SIGTERM", "SIGTERM", "15"):
        output = RECEIVED_SIGNAL.replace("Received 15", f"Received {signal}")
        assert "received SIGTERM" in cause(torchrun_node(output, rank(0, -15)))[2]


def test_torchrun_is_named_as_sender_after_a_rank_failed() -> None:
    output = CLOSING.format(101) + FAILED.format(7, 100)
    found = diagnose_nodes(torchrun_node(output, rank(0, 7, 1060.0), rank(1, -15, 1060.3)))
    assert found.cause.name == "exit-code"
    assert first_and_consequences(found) == (
        *("rank 0 on node1", ("node1 rank 1: torchrun ended it (SIGTERM) after another rank of its node had failed",)),
    )


def test_sigkill_by_torchrun_is_not_an_external_kill() -> None:
    output = CLOSING.format(101) + UNABLE.format(101) + FAILED.format(7, 100)
    found = diagnose_nodes(torchrun_node(output, rank(0, 7, 1060.0), rank(1, -9, 1090.0)))
    assert found.consequences == (
        "node1 rank 1: torchrun ended it (SIGKILL) after another rank of its node had failed",
    )


@pytest.mark.parametrize(
    ("code", "begin"), [(-15, "SIGTERM came"), (143, "it ended with exit code 143, typical of a script")]
)
def test_sigterm_to_one_rank_is_the_first_failure(code: int, begin: str) -> None:
    output = CLOSING.format(101) + FAILED.format(code, 100)
    found = diagnose_nodes(torchrun_node(output, rank(0, code, 1060.0), rank(1, -15, 1060.2)))
    assert (found.cause.kind, found.cause.name) == (Kind.KILLED, "terminated")
    assert found.cause.words.startswith(begin)
    assert found.cause.words.endswith("came from outside: neither torchfab nor its launcher sent it")
    assert first_and_consequences(found)[0] == "rank 0 on node1"


def test_a_killed_agent_precedes_a_rank_elsewhere_that_ends_on_sigterm() -> None:
    # The supervisor of node2 sends SIGTERM to rank 1; all ranks agree to end.
    killed = node(1, [process("failed", rank(1), code=-9, ended=1058.0)])
    agreed = torchrun_node(CLOSING.format(101) + FAILED.format(143, 100), rank(0, 143, 1060.0))
    found = diagnose_nodes(agreed, killed)
    assert (first_and_consequences(found)[0], found.cause.name) == ("the agent on node2", "killed")


@pytest.mark.parametrize("code", [-15, 143])
def test_signal_to_a_rank_without_launcher_is_external(code: int) -> None:
    alone = node(0, [process("failed", rank(0, code), name="rank-0", pid=100)], ends={"rank-0": EXIT_RECORD})
    assert cause(alone)[:2] == (Kind.KILLED, "terminated")
    assert cause(alone)[2].endswith("came from outside: torchfab did not send it")


def test_exit_code_143_without_a_known_signal_has_no_known_sender() -> None:
    assert cause(torchrun_node("", rank(0, 143)))[:2] == (Kind.KILLED, "ended")


def test_exit_143_after_a_signal_to_the_supervisor_or_fab_stop() -> None:
    assert cause(torchrun_node("", rank(0, 143), end={**EXIT_RECORD, "asked": "SIGTERM"}))[:2] == (Kind.KILLED, "asked")
    stopped = node(0, [process("stopped", rank(0, 143, 1071.0))], stop_asked=1070.0)
    assert diagnose_nodes(stopped).cause.kind is Kind.STOPPED
    failed = node(1, [process("failed", rank(1, 7, 1060.0))], stop_asked=1070.0)
    events = ({"time": 1070.0, "event": "stopped after a failure"},)
    assert diagnose_nodes(failed, stopped, events=events).consequences == (
        "node1 rank 0: ended by fab, which stopped the rest",
    )


def test_supervisor_ends_the_ranks_of_a_killed_launcher() -> None:
    end = {**EXIT_RECORD, "left": ["100 (python train.py)"]}
    found = diagnose_nodes(torchrun_node("", rank(0, -15, 1061.5), end=end, code=-9))
    assert first_and_consequences(found) == (
        "the agent on node1",
        ("node1 rank 0: its supervisor ended it (SIGTERM): it was left when agent had ended",),
    )


@pytest.mark.parametrize(
    ("why", "words"),
    [
        ("failed", "its supervisor ended it (SIGTERM) after another rank of its node had failed"),
        ("SIGHUP", "its supervisor ended it (SIGTERM) because its launcher got SIGHUP"),
        ("closing", "its supervisor ended it (SIGTERM) because its launcher was about to"),
    ],
)
def test_supervisor_ends_ranks_in_place_of_their_launcher(why: str, words: str) -> None:
    end = {**EXIT_RECORD, "peers": [(100, why)]}
    # torchrun reports that rank as if the signal came from elsewhere.
    found = diagnose_nodes(torchrun_node("failed (exitcode: -15) local_rank: 0 (pid: 100)", rank(0, -15), end=end))
    assert found.cause.words == words
    failed = diagnose_nodes(torchrun_node("", rank(0, -15, 1062.0), rank(1, 7, 1061.0), end=end))
    assert first_and_consequences(failed)[1] == (f"node1 rank 0: {words}",)


def test_a_rank_that_a_launcher_without_its_store_would_end_is_attributed_to_the_store() -> None:
    end = {**EXIT_RECORD, "peers": [(100, "closing")]}
    found = diagnose_nodes(torchrun_node(LOST_STORE, rank(0, -15), end=end))
    assert found.cause.name == "rendezvous-connection"
    assert found.cause.words.startswith("its supervisor ended it (SIGTERM): it could not reach the rendezvous: torch.")


def test_launcher_that_ends_its_ranks_reports_its_own_error() -> None:
    found = diagnose_nodes(torchrun_node(CLOSING.format(100) + LOST_STORE, rank(0, -15)))
    assert found.cause.name == "rendezvous-connection"
    assert found.cause.words.startswith("torchrun ended it (SIGTERM): it could not reach the rendezvous: torch.")
    silent = diagnose_nodes(torchrun_node(CLOSING.format(100), rank(0, -15)))
    assert (silent.cause.kind, silent.cause.words) == (Kind.UNKNOWN, "torchrun ended it (SIGTERM)")


def test_signal_to_a_launcher_with_successful_ranks_is_reported() -> None:
    found = diagnose_nodes(torchrun_node(RECEIVED_SIGNAL + SIGNALLED, rank(0, 0)))
    assert (found.cause.kind, found.cause.name) == (Kind.KILLED, "terminated")
    assert found.cause.words == "torchrun received SIGTERM; not sent by fab stop or its supervisor"


def test_deepspeed_launcher_logs_are_parsed() -> None:
    found = diagnose_nodes(torchrun_node(DEEPSPEED, rank(0, -15)))
    assert found.cause.words.startswith("deepspeed's launcher received SIGTERM, and its ranks with it")
    ended = diagnose_nodes(torchrun_node(DEEPSPEED.splitlines()[0], rank(0, -15)))
    assert ended.cause.words == "deepspeed's launcher ended it (SIGTERM)"


def test_signal_of_unknown_sender_has_cause_ended() -> None:
    found = diagnose_nodes(node(0, [process("failed", rank(0, -15))]))
    assert (found.cause.kind, found.cause.name) == (Kind.KILLED, "ended")
    assert found.cause.words == "SIGTERM ended it; its sender is unknown"


LOST_RANK = "RuntimeError: [/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:24750"
RAISED = """\
Traceback (most recent call last):
  File "/a/train.py", line 7, in main
    loss = step(batch)
KeyError: 'label'
"""


@pytest.mark.parametrize("code", [-15, 143])
def test_sigterm_of_a_head_after_a_failure_elsewhere_is_a_consequence(code: int) -> None:
    lost = node(0, [process("failed", rank(0, 1, 1060.0))], [log(0, RAISED.replace("KeyError: 'label'", LOST_RANK))])
    ended = torchrun_node(RECEIVED_SIGNAL + CLOSING.format(101), rank(1, code, 1063.0), at=1)
    assert first_and_consequences(diagnose_nodes(lost, ended))[0] == "rank 0 on node1"


@pytest.mark.parametrize("after_s", [0.05, 0.2, 3.0])
def test_sigterm_to_a_head_after_a_rank_left_early_is_a_consequence(after_s: float) -> None:
    head = process("failed", name="head", code=143, ended=1060.0 + after_s)
    trace = RAISED.replace("KeyError: 'label'", LOST_RANK)
    processes = [head, process("failed", rank(0, 1, 1060.0))]
    lost = node(0, processes, [log(0, trace, 1060.0)], ends={"head": EXIT_RECORD})
    early = node(1, [process("succeeded", rank(1, 0, 1059.4))])
    found = diagnose_nodes(lost, early)
    assert (found.cause.name, found.first and found.first.rank) == ("left-early", 1)


def test_sigterm_to_a_head_before_its_ranks_lost_each_other_is_the_cause() -> None:
    head = process("failed", name="head", code=143, ended=1059.0)
    trace = RAISED.replace("KeyError: 'label'", LOST_RANK)
    processes = [head, process("failed", rank(0, 1, 1060.0))]
    lost = node(0, processes, [log(0, trace, 1060.0)], ends={"head": EXIT_RECORD})
    assert cause(lost)[:2] == (Kind.KILLED, "terminated")


@pytest.mark.parametrize("output", ["", RECEIVED_SIGNAL, RECEIVED_SIGNAL + CLOSING.format(101)])
def test_rank_that_raised_before_it_was_terminated_has_its_own_cause(output: str) -> None:
    lost = node(0, [process("failed", rank(0, 1, 1060.0))], [log(0, RAISED.replace("KeyError: 'label'", LOST_RANK))])
    raised = torchrun_node(output, rank(1, -15, 1063.0), at=1)
    raised = replace(raised, logs=(*raised.logs, Log(1, "/jobs/1/stderr.log", RAISED, 1059.0)))
    found = diagnose_nodes(lost, raised)
    assert first_and_consequences(found)[0] == "rank 1 on node2"
    assert found.cause.words == "the script raised KeyError: 'label'"


def test_rank_that_raised_before_a_torchrun_without_store_ended_it() -> None:
    lost = node(0, [process("failed", rank(0, 1, 1060.0))], [log(0, RAISED.replace("KeyError: 'label'", LOST_RANK))])
    raised = torchrun_node(CLOSING.format(101) + LOST_STORE, rank(1, -15, 1061.0), at=1)
    raised = replace(raised, logs=(*raised.logs, Log(1, "/jobs/1/stderr.log", RAISED, 1059.0)))
    found = diagnose_nodes(lost, raised)
    assert first_and_consequences(found)[0] == "rank 1 on node2"
    assert found.cause.words == "the script raised KeyError: 'label'"

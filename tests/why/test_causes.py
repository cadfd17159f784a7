"""Causes as `fab why` finds them in the logs of a job: stragglers, loaders, schedulers."""

from __future__ import annotations

import pytest

from tests.recorded.recordings import recording
from tests.why.evidence_factory import LAUNCHED, diagnose_nodes, log, make_evidence, node, process, rank
from torchfab.why import causes, failures, signatures
from torchfab.why.causes import Kind

# Handwritten after the recording of torch 2.7, which has one rank only; here for all ranks of a job.
WATCHDOG = """\
[rank{rank}]:[E1121 ProcessGroupNCCL.cpp:685] [Rank {rank}] Watchdog caught collective operation timeout: \
WorkNCCL(SeqNum={seq}, OpType=ALLREDUCE, NumelIn=1048576, NumelOut=1048576, Timeout(ms)=600000) ran for 600029 \
milliseconds before timing out.
[rank{rank}]:[E1121 ProcessGroupNCCL.cpp:2252] [PG ID 0 PG GUID 0(default_pg) Rank {rank}]  failure detected by \
watchdog at work sequence id: {seq} PG status: last enqueued work: {seq}, last completed work: {done}
terminate called after throwing an instance of 'c10::DistBackendError'
"""


def test_nccl_watchdog_logs_identify_the_straggler() -> None:
    ranks = [(0, 14, 13), (1, 14, 13), (2, 11, 11)]
    nodes = [
        node(number, [process("failed", rank(number, -6, 1060.0 + number / 10))],
             [log(number, WATCHDOG.format(rank=number, seq=seq, done=done))])
        for number, seq, done in ranks
    ]  # fmt: skip
    found = diagnose_nodes(*nodes)
    assert (found.cause.kind, found.cause.name) == (Kind.NETWORK, "nccl-timeout")
    assert found.cause.words == "NCCL timed out waiting for another rank, in ALLREDUCE number 14"
    assert [each.words for each in found.stragglers] == [
        "rank 2 on node3 had begun 11 collectives, the others up to 14"
    ]


def stragglers(*logs: str) -> list[str]:
    """Return the stragglers if rank N on node N+1 wrote the Nth of these logs and failed."""
    nodes = [
        node(number, [process("failed", rank(number, -6, 1060.0 + number / 10))], [log(number, text)])
        for number, text in enumerate(logs)
    ]
    return [each.words for each in diagnose_nodes(*nodes).stragglers if "had begun" in each.words]


def test_collective_counts_are_compared_within_a_process_group() -> None:
    default, second = recording("torch", "watchdog-2.4.txt"), recording("torch", "watchdog-2.5.1.txt")
    assert stragglers(default, second) == []
    late = second.replace("work: 4486, last enqueued NCCL work: 4489", "work: 4484, last enqueued NCCL work: 4484")
    assert stragglers(second + default, late + default) == [
        "rank 1 on node2 had begun 4484 collectives of process group 9, the others up to 4489"
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("watchdog-2.0.txt", "rank 1 on node2 had begun 64088 collectives, the others up to 96120"),
        ("watchdog-2.5.1-ranks-differ.txt", "rank 0 on node1 had begun 532339 collectives, the others up to 532341"),
    ],
)
def test_straggler_is_found_in_logs_without_group_names(name: str, words: str) -> None:
    assert stragglers(*recording("torch", name).splitlines()) == [words]


def test_device_assert_takes_precedence_over_lost_connections() -> None:
    both = recording("torch", "illegal-access-2.2-watchdog.txt") + recording("torch", "store-should-dump-2.9.txt")
    found = signatures.recognise(both)
    assert found is not None
    assert found.name == "device-assert"


@pytest.mark.parametrize("is_in_kernel_log", [True, False])
def test_killed_loader_is_certain_only_if_the_kernel_names_its_pid(is_in_kernel_log: bool) -> None:
    text = (
        "Traceback (most recent call last):\nRuntimeError: DataLoader worker (pid 4711) is killed by signal: Killed. \n"
    )
    kernel = [(1059.0, "Out of memory: Killed process 4711 (python3) total-vm:9kB")] if is_in_kernel_log else []
    failed = node(0, [process("failed", rank(0, 1))], [log(0, text)], kernel={"lines": kernel, "unread": ""})
    found = diagnose_nodes(failed)
    assert found.cause.name == "host-memory"
    assert found.certainty == ("certain" if is_in_kernel_log else "probable")


def test_semaphore_without_space_is_a_shared_memory_cause() -> None:
    recorded = recording("torch", "semlock-no-space.txt")
    (end,) = failures.all_failures(
        make_evidence(
            node(0, [process("failed", rank(0, 1))], [log(0, f"Traceback (most recent call last):\n{recorded}")])
        )
    )
    assert (end.cause.kind, end.cause.name) == (Kind.MEMORY, "shared-memory")
    assert end.cause.words.endswith("OSError: [Errno 28] No space left on device")


@pytest.mark.parametrize("sign", causes.SCHEDULED)
def test_every_scheduler_reason_has_a_kind(sign: str) -> None:
    assert causes.cause_of_schedule(sign, "words").kind is not Kind.UNKNOWN
    assert causes.cause_of_schedule("SOMETHING_NEW", "words").kind is Kind.UNKNOWN


def of_rank(number: int, operation: str, age_s: float) -> dict[str, object]:
    """Return the collectives of a rank that waits in its second call."""
    calls = [
        ["0", 1, "all_reduce", [[1]], ["Float"], [[1]], ["Float"], True, age_s + 1, []],
        ["0", 2, operation, [[1]], ["Float"], [[1]], ["Float"], False, age_s, []],
    ]
    stack = [["step", "/w/train.py", 30 + number]]
    return {
        "rank": number,
        "pid": 100 + number,
        "time": 1050.0,
        "groups": [["0", "default_pg", [0, 1]]],
        "calls": calls if operation else calls[:1],
        "stack": stack,
    }


def of_a_failed_job(text: str, operation: str) -> list[str]:
    """Return what is said about collectives where rank 0 failed with a text and rank 1 was in an operation."""
    logs = [log(0, text)]
    failed = node(0, [process("failed", rank(0, 1))], logs, collectives=[of_rank(0, "all_reduce", 9.0)])
    other = node(1, [process("failed", rank(1, -15))], collectives=[of_rank(1, operation, 9.0)])
    return [each.words for each in diagnose_nodes(failed, other).collectives]


RAISED = 'Traceback (most recent call last):\n  File "/w/train.py", line 3, in <module>\nValueError: x'
TIMED_OUT = "RuntimeError: Timed out waiting 9000ms for recv operation to complete"


def test_calls_that_cannot_belong_together_are_named_whatever_failed_first() -> None:
    words = "rank 1 called broadcast no. 2 (float32[1], train.py:31); rank 0 all_reduce no. 2 (float32[1], train.py:30)"
    assert of_a_failed_job(RAISED, "broadcast") == [words]
    assert of_a_failed_job(TIMED_OUT, "broadcast") == [words]


def test_a_rank_that_is_late_is_named_after_a_timeout_only() -> None:
    assert of_a_failed_job(RAISED, "") == []
    (words,) = of_a_failed_job(TIMED_OUT, "")
    assert words.startswith("rank 1 has not reached all_reduce no. 2, at train.py:31 in step; rank 0 waits there")


def test_of_a_rank_that_was_killed_it_is_said_where_the_others_were() -> None:
    failed = node(0, [process("failed", rank(0, -9))])
    other = node(1, [process("failed", rank(1, -15, ended=LAUNCHED + 61))], collectives=[of_rank(1, "all_reduce", 0.1)])
    (found,) = diagnose_nodes(failed, other).collectives
    assert found.words == "rank 0 has ended, and rank 1 waits in all_reduce no. 2 (float32[1], train.py:31)"

"""What the kernel and schedulers report outranks ranks that only report what happened to them."""

from __future__ import annotations

import pytest

from tests.why.evidence_factory import LAUNCHED, diagnose_nodes, log, node, process, rank
from torchfab.why.causes import Kind
from torchfab.why.diagnosis import Diagnosis

WAITED = (
    "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, "
    "Timeout(ms)=600000) ran for 600041 milliseconds before timing out."
)
RAISED = 'Traceback (most recent call last):\n  File "/w/t.py", line 1, in <module>\n    f()\nKeyError: 1\n'


def two_ranks(line: str, at: float, of_1: str = WAITED, codes: tuple[int, int] = (-6, -6)) -> Diagnosis:
    """Return the diagnosis of two ranks, the first of which waits in vain; the kernel of node 2 reports a line."""
    kernel = {"lines": [[LAUNCHED + at, line]], "unread": ""}
    return diagnose_nodes(
        node(0, [process("failed", rank(0, codes[0], LAUNCHED + 60))], [log(0, WAITED)]),
        node(1, [process("failed", rank(1, codes[1], LAUNCHED + 61))], [log(1, of_1)], kernel=kernel),
    )


@pytest.mark.parametrize("pid", ["", "pid=101, name=python, ", "pid='<unknown>', name=<unknown>, "])
@pytest.mark.parametrize("xid", [48, 74, 79, 95, 119])
@pytest.mark.parametrize(("of_1", "codes"), [(WAITED, (-6, -6)), ("step 8", (-6, -15))])
def test_dead_gpu_is_the_cause_where_ranks_only_wait(pid: str, xid: int, of_1: str, codes: tuple[int, int]) -> None:
    found = two_ranks(f"NVRM: Xid (PCI:0000:9b:00): {xid}, {pid}it is broken", 20.0, of_1, codes)
    assert (found.cause.kind, found.cause.name, found.bad_nodes) == (Kind.NODE, "gpu-sick", ("node2",))
    assert found.first is not None
    assert (found.first.rank, found.first.time) == (1, LAUNCHED + 20)
    assert found.certainty == "probable"


@pytest.mark.parametrize(
    ("line", "at"),
    [
        ("NVRM: Xid (PCI:0000:9b:00): 79, pid=77, name=other, GPU has fallen off the bus", 20.0),  # of another job
        ("NVRM: Xid (PCI:0000:9b:00): 79, pid=101, name=python, GPU has fallen off the bus", 90.0),  # afterwards
        ("NVRM: Xid (PCI:0000:9b:00): 43, pid=101, name=python, Ch 00000008", 20.0),  # what a script causes
        ("NVRM: Xid (PCI:0000:9b:00): 63, pid=101, name=python, Row Remapper", 20.0),  # repaired
    ],
)
def test_other_reports_of_the_driver_blame_no_node(line: str, at: float) -> None:
    found = two_ranks(line, at)
    assert (found.cause.kind, found.bad_nodes) == (Kind.NETWORK, ())


def test_exception_of_the_script_is_not_explained_by_a_gpu() -> None:
    found = two_ranks("NVRM: Xid (PCI:0000:9b:00): 79, GPU has fallen off the bus", 20.0, RAISED, (-6, 1))
    assert (found.cause.kind, found.cause.name, found.bad_nodes) == (Kind.SCRIPT, "exception", ())


@pytest.mark.parametrize("code", [-15, -9, 143, 140, 1])
@pytest.mark.parametrize(
    ("line", "kind", "name"),
    [
        ("=>> PBS: job killed: walltime 3619 exceeded limit 3600", Kind.KILLED, "time-limit"),
        ("=>> PBS: job killed: vmem 9000000kb exceeded limit 8388608kb", Kind.MEMORY, "memory-limit"),
        ("TERM_RUNLIMIT: job killed after reaching LSF run time limit.", Kind.KILLED, "time-limit"),
        ("TERM_MEMLIMIT: job killed after reaching LSF memory usage limit.", Kind.MEMORY, "memory-limit"),
        ("TERM_PREEMPT: job killed by the scheduler", Kind.KILLED, "preempted"),
        ("job 812 exceeded hard wallclock time", Kind.KILLED, "time-limit"),
    ],
)
def test_limit_of_a_scheduler_explains_any_exit_code(code: int, line: str, kind: Kind, name: str) -> None:
    found = diagnose_nodes(node(0, [process("failed", rank(0, code))], [log(0, f"step 8\n{line}\n")]))
    assert (found.cause.kind, found.cause.name) == (kind, name)

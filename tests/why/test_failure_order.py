"""Who failed first: the rank that raised, however it and the others end, and wherever they run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.why.evidence_factory import LAUNCHED, diagnose_nodes, log, node, process, rank
from torchfab.why.causes import Kind
from torchfab.why.diagnosis import Diagnosis
from torchfab.why.evidence import NodeEvidence

C10D = "/opt/env/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py"
OWN = "/home/u/train.py"


def raised(error: str, path: str = OWN) -> str:
    """Return a traceback that ends in a file."""
    return f'Traceback (most recent call last):\n  File "{path}", line 7, in step\n    work()\n{error}\n'


# What a rank prints when it loses another rank: a traceback in torch.distributed, or in its own file.
IN_TORCH = {
    "gloo": "RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:1",
    "gloo-reset": "RuntimeError: [/x/gloo/pair.cc:9] Read error [10.0.0.2]:1: Connection reset by peer",
    "pipe": "RuntimeError: Broken pipe",
    "store": "torch.distributed.DistNetworkError: Failed to recv, got 0 bytes. Connection was likely closed.",
    "remote": "torch.distributed.DistBackendError: NCCL error in: x.cpp:1970, remote process exited",
    "unknown": "torch.distributed.DistBackendError: the group has gone away",
    "aborted": "RuntimeError: NCCL communicator was aborted on rank 1.",
}
IN_SCRIPT = {
    "hccl": "RuntimeError: HCCL error in: x.cpp:1, [ERROR] the peer does not answer",
    "horovod": "horovod.common.exceptions.HorovodInternalError: Horovod has been shut down.",
}
WATCHDOG = """\
[rank0]:[E419 ProcessGroupNCCL.cpp:616] [Rank 0] Watchdog caught collective operation timeout: \
WorkNCCL(SeqNum=9, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600080 milliseconds
"""
# Text and exit code.
LOST = {
    **{name: (raised(error, C10D), 1) for name, error in IN_TORCH.items()},
    **{name: (raised(error), 1) for name, error in IN_SCRIPT.items()},
    "watchdog": (WATCHDOG, -6),
    "killed": ("", -9),
    "terminated": ("", -15),
}
ERRORS = (
    *(
        "KeyError: 'img'",
        "ValueError: bad batch",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
    ),
    *("AssertionError", "my.pkg.Strange: x", "OSError: [Errno 5] Input/output error: '/data/x'", "RuntimeError: odd"),
)
# How the rank that raised ends: its exit code (None: it runs), and seconds after its exception.
ENDS = {"runs": None, "0": 0, "1": 1, "late": 1, "killed": -9, "terminated": -15, "aborted": -6}
DELAYS = {"late": 12.0, "0": 2.0, "killed": 8.0}


@st.composite
def plays(draw: st.DrawFn) -> tuple[list[NodeEvidence], int, str, str]:
    """Return the nodes of a job, the rank that raises, its error and how it ends."""
    count, per_node = draw(st.integers(2, 6)), draw(st.integers(1, 3))
    who, how, error = (
        draw(st.integers(0, count - 1)),
        draw(st.sampled_from(sorted(ENDS))),
        draw(st.sampled_from(ERRORS)),
    )
    at = LAUNCHED + 30
    ranks: list[Any] = []
    logs: list[Any] = []
    for number in range(count):
        if number == who:
            code, ended = ENDS[how], at + DELAYS.get(how, 0.2)
            ranks.append(rank(number, code, ended if code is not None else None))
            logs.append(log(number, "step 1\n" + raised(error), at))
            continue
        text, code = LOST[draw(st.sampled_from(sorted(LOST)))]
        written = at + draw(st.floats(0.4, 5.0))
        ranks.append(rank(number, code, written + 0.1))
        logs.append(log(number, text or "step 1\n", written))
    nodes = [
        node(first, [process("failed", *ranks[begin : begin + per_node])], logs[begin : begin + per_node])
        for first, begin in enumerate(range(0, count, per_node))
    ]
    return nodes, who, error, how


@given(plays())
def test_rank_that_raised_is_first_however_all_end(play: tuple[list[NodeEvidence], int, str, str]) -> None:
    nodes, who, error, how = play
    found = diagnose_nodes(*nodes)
    assert found.first
    assert found.first.rank == who, (found.cause, how)
    assert found.traceback
    assert found.traceback.exception == error
    assert found.bad_nodes == ()
    assert mentioned(found) == {each.rank for each in ranks_of(nodes)}


def ranks_of(nodes: list[NodeEvidence]) -> list[Any]:
    """Return all ranks of a job."""
    return [each for one in nodes for each in one.status.ranks]


def mentioned(found: Diagnosis) -> set[int]:
    """Return the ranks in the story: first, what followed, and the others."""
    numbers: set[int] = set() if found.first is None or found.first.rank is None else {found.first.rank}
    for line in (*found.consequences, *found.others):
        words = line.partition(":")[0].partition("rank")[2].removeprefix("s").strip()
        for part in filter(None, words.split(",")):  # a launcher has none
            low, _, high = part.partition("-")
            numbers |= set(range(int(low), int(high or low) + 1))
    return numbers


@pytest.mark.parametrize("lost", [name for name in LOST if LOST[name][1] == 1])
@pytest.mark.parametrize("before_s", [0.5, 3.0, 20.0])
def test_rank_that_left_with_0_is_first_if_nobody_raised(lost: str, before_s: float) -> None:
    at = LAUNCHED + 60
    early = node(1, [process("succeeded", rank(1, 0, at - before_s))], [log(1, "done\n", at - before_s)])
    other = node(0, [process("failed", rank(0, 1, at))], [log(0, LOST[lost][0], at)])
    found = diagnose_nodes(other, early)
    assert (found.cause.name, found.first and found.first.rank) == ("left-early", 1), found.cause
    assert "Join" in found.cause.fix


@pytest.mark.parametrize("number", [4, 6, 7, 8, 9, 11])
@pytest.mark.parametrize("kernel", ["", "Killed process 8156 (python3) total-vm:9kB"])
def test_code_of_a_shell_is_the_signal_of_its_program(number: int, kernel: str) -> None:
    lines = {"lines": [[LAUNCHED + 59, kernel]] if kernel else [], "unread": ""}
    codes = (-number, 128 + number)
    kinds = []
    for code in codes:
        printed = f"run.sh: line 3:  8156 {'Killed' if number == 9 else 'Aborted'}   python3 train.py\n"
        text = printed if code > 0 else ""
        found = diagnose_nodes(
            node(0, [process("failed", rank(0, code, pid=8156 if code < 0 else 77))], [log(0, text)], kernel=lines)
        )
        kinds.append(found.cause.kind)
    assert kinds[1] is (Kind.MEMORY if number == 9 else Kind.SCRIPT)
    assert kinds[0] is kinds[1] or (number == 9 and not kernel and kinds[0] is Kind.KILLED)


@pytest.mark.parametrize("code", [-15, 143, 130, -1])
@pytest.mark.parametrize(("ended", "first"), [(1050.0, 1), (1070.0, 0)])
def test_signal_of_an_unknown_sender_is_first_only_if_nothing_failed_before(
    code: int, ended: float, first: int
) -> None:
    lost = "RuntimeError: [/x/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.1.4.12]:31877\n"
    text = f'Traceback (most recent call last):\n  File "/w/t.py", line 1, in <module>\n    f()\n{lost}'
    found = diagnose_nodes(
        node(0, [process("failed", rank(0, 1, 1060.0))], [log(0, text)]),
        node(1, [process("failed", rank(1, code, ended))], [log(1, "spot interruption notice\n", ended)]),
    )
    assert found.first is not None
    assert found.first.rank == first
    assert found.bad_nodes == ()


def in_parts(number: int, *parts: tuple[str, float]) -> dict[str, Any]:
    """Return a log of which the lines were written at these times."""
    shown = [{"text": text, "time": time} for text, time in parts]
    return {"label": number, "path": f"/jobs/{number}/stderr.log", "written": parts[-1][1], "parts": shown}


def traceback_of(exception: str, path: str = "/w/data.py") -> str:
    return f'Traceback (most recent call last):\n  File "{path}", line 3, in f\n    g()\n{exception}\n'


@pytest.mark.parametrize("steps", [2, 30])
@pytest.mark.parametrize("code", [1, -15])
@pytest.mark.parametrize("ends_with_loss", [True, False])
def test_rank_that_went_on_from_an_exception_is_not_blamed_when_another_one_fails(
    steps: int, code: int, ends_with_loss: bool
) -> None:
    lost = traceback_of("RuntimeError: [/x/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.1.4.12]:31877")
    later = "".join(f"step {number} loss 2.1\n" for number in range(steps)) + (lost if ends_with_loss else "")
    caught = in_parts(
        1, (f"ERROR cannot read image 7, skipped\n{traceback_of('ValueError: bad image')}", 1010.0), (later, 1060.5)
    )
    found = diagnose_nodes(
        node(
            0, [process("failed", rank(0, 1, 1060.0))], [log(0, traceback_of("IndexError: 7", "/w/train.py"), 1060.0)]
        ),
        node(1, [process("failed", rank(1, code, 1060.5))], [caught]),
    )
    assert found.first is not None
    assert (found.first.rank, found.cause.words) == (0, "the script raised IndexError: 7")


def test_rank_that_raised_and_lingered_is_still_the_cause() -> None:
    lost = traceback_of("RuntimeError: [/x/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.1.4.12]:31877")
    lingering = in_parts(1, (traceback_of("ValueError: bad image"), 1010.0), (f"closing the loaders\n{lost}", 1060.5))
    found = diagnose_nodes(
        node(0, [process("failed", rank(0, 1, 1012.0))], [log(0, lost, 1012.0)]),
        node(1, [process("failed", rank(1, 1, 1060.5))], [lingering]),
    )
    assert found.first is not None
    assert (found.first.rank, found.cause.words) == (1, "the script raised ValueError: bad image")

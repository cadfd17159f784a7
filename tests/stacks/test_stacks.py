"""Stacks: their meaning, their groups, the text and JSON, and the reasons for missing stacks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import make_nodes
from torchfab.core.errors import HostError, TorchfabError
from torchfab.stacks import groups, interpret, report
from torchfab.stacks.model import Frame, NodeStacks, RankStack, StackDump, Thread, from_answer
from torchfab.stacks.refusals import explain

LIB = "/venv/lib/python3.11/site-packages/"
C10D = LIB + "torch/distributed/distributed_c10d.py"
TRAIN = "/home/me/project/train.py"
MAIN = Frame("<module>", TRAIN, 90)
WRAPPER = Frame("_exception_logger.<locals>.wrapper", LIB + "torch/distributed/c10d_logger.py", 83)
NODES = make_nodes("node1", "node2", "node3")


def own(function: str, line: int, source: str = "") -> Frame:
    return Frame(function, TRAIN, line, source)


def library(path: str, function: str) -> Frame:
    return Frame(function, LIB + path, 5)


ALL_REDUCE = (Frame("all_reduce", C10D, 3252), WRAPPER, own("reduce_loss", 8), own("train", 16), MAIN)
ALL_GATHER = (Frame("all_gather", C10D, 4001), WRAPPER, own("gather_stats", 30), own("train", 18), MAIN)


def rank(number: int | None, frames: Sequence[Frame], node: int = 0, **values: Any) -> RankStack:
    threads = (Thread("MainThread", tuple(frames)),) if frames else ()
    base: dict[str, Any] = {"state": "S", "by": "py-spy", "threads": threads}
    return RankStack(NODES[node], "agent", number, 4000 + (number or 0), **{**base, **values})


def dump(*ranks: RankStack, unheard: Mapping[str, TorchfabError] | None = None, **rights: Any) -> StackDump:
    nodes = [NodeStacks(node, tuple(each for each in ranks if each.node == node), "", rights) for node in NODES]
    return StackDump(tuple(node for node in nodes if node.ranks), unheard or {})


# ---- what a stack means


@pytest.mark.parametrize(
    ("frames", "activity", "waits"),
    [
        (ALL_REDUCE, "in all_reduce", True),
        (ALL_GATHER, "in all_gather", True),
        ((Frame("_all_gather_base", C10D, 9), own("f", 1)), "in all_gather_base", True),
        ((Frame("broadcast_object_list", C10D, 9), own("f", 1)), "in broadcast_object_list", True),
        ((Frame("recv", C10D, 1), Frame("broadcast", C10D, 9), own("f", 1)), "in broadcast", True),
        ((Frame("barrier", C10D, 9), own("f", 1)), "in barrier", True),
        ((library("torch/distributed/rendezvous.py", "_create_c10d_store"), Frame("init_process_group", C10D, 1), MAIN),
         "in init_process_group", True),
        ((Frame("Connection.poll", "/usr/lib/python3.11/multiprocessing/connection.py", 3),
          library("torch/utils/data/dataloader.py", "_BaseDataLoaderIter.__next__"), own("train", 3)),
         "at the DataLoader, for a batch", True),
        ((library("torch/serialization.py", "_save"), library("torch/serialization.py", "save"), own("save", 3)),
         "in torch.save (a checkpoint?)", True),
        ((library("torch/optim/adamw.py", "_multi_tensor_adamw"), library("torch/optim/optimizer.py", "wrapper")),
         "in the optimizer's step", False),
        ((library("torch/_tensor.py", "Tensor.backward"), own("step", 3)), "in backward", True),
        ((library("torch/cuda/__init__.py", "synchronize"), own("step", 3)), "in cuda.synchronize, for the GPU", True),
        ((Frame("<module>", "<frozen importlib._bootstrap>", 241), MAIN), "in an import", False),
        ((own("doze", 3, "time.sleep(60)"), MAIN), "in time.sleep", True),
        ((own("loss_of", 3, "return loss.item()"), MAIN), "in .item(), which waits for the device", True),
        ((own("compute", 3, "x = x + 1"), MAIN), "", False),
        ((), "", False),
    ],
)  # fmt: skip
def test_activity_of_a_stack_is_recognised(frames: tuple[Frame, ...], activity: str, waits: bool) -> None:
    found = interpret.find_meaning(frames)
    assert (found.activity, found.waits) == (activity, waits)


def test_own_frame_is_the_innermost_frame_of_user_code() -> None:
    assert interpret.find_meaning(ALL_REDUCE).own == own("reduce_loss", 8)
    assert interpret.find_meaning((Frame("run", "/usr/lib/python3.11/threading.py", 3),)).own is None


def test_short_file_omits_library_and_project_folders() -> None:
    shown = [Frame("f", C10D, 1).short_file, Frame("f", "/usr/lib/python3.11/threading.py", 1).short_file]
    assert [*shown, MAIN.short_file] == ["torch/distributed/distributed_c10d.py", "threading.py", "train.py"]


# ---- groups


def ranks_of(found: Sequence[groups.Group]) -> list[list[int | None]]:
    return [[each.rank for each in group.ranks] for group in found]


def test_odd_rank_comes_first() -> None:
    ranks = [rank(number, ALL_GATHER if number == 13 else ALL_REDUCE) for number in range(512)]
    found = groups.group(ranks)
    assert ranks_of(found) == [[13], [*range(13), *range(14, 512)]]


def test_two_collectives_in_one_function_are_separate_groups() -> None:
    other = (*ALL_REDUCE[:2], own("reduce_loss", 12), *ALL_REDUCE[3:])
    assert ranks_of(groups.group([rank(0, ALL_REDUCE), rank(1, other), rank(2, ALL_REDUCE)])) == [[1], [0, 2]]


def test_frames_inside_a_collective_are_ignored() -> None:
    deeper = (Frame("_wait", C10D, 7), Frame("all_reduce", C10D, 3260), *ALL_REDUCE[1:])
    assert ranks_of(groups.group([rank(0, ALL_REDUCE), rank(1, deeper)])) == [[0, 1]]


def test_line_numbers_of_computing_ranks_count_only_if_exact() -> None:
    here, there = (own("compute", 3), own("train", 9)), (own("compute", 4), own("train", 9))
    assert ranks_of(groups.group([rank(0, here), rank(1, there)])) == [[0, 1]]
    assert ranks_of(groups.group([rank(0, here), rank(1, there)], exact=True)) == [[0], [1]]


def test_stopped_rank_comes_first_even_in_the_common_stack() -> None:
    odd, stopped = rank(1, ALL_GATHER), rank(2, ALL_REDUCE, state="T")
    assert ranks_of(groups.group([rank(0, ALL_REDUCE), odd, stopped, rank(3, ALL_REDUCE)])) == [[2], [1], [0, 3]]


def test_rank_that_waits_for_another_rank_comes_last() -> None:
    assert ranks_of(groups.group([rank(0, ALL_REDUCE), rank(1, (own("load", 3), MAIN))])) == [[1], [0]]


def test_stacks_are_compared_without_class_names() -> None:
    spied = (library("torch/_tensor.py", "Tensor.backward"), own("Trainer.step", 3))
    signalled = (library("torch/_tensor.py", "backward"), own("step", 3))
    assert ranks_of(groups.group([rank(0, spied), rank(1, signalled, by="SIGUSR2")])) == [[0, 1]]


STACKS = st.lists(
    st.lists(st.builds(Frame, st.sampled_from("abc"), st.sampled_from([TRAIN, C10D]), st.integers(0, 2)), max_size=3),
    max_size=12,
)


@given(STACKS, st.booleans())
def test_every_rank_is_in_one_group_and_small_groups_come_first(stacks: list[list[Frame]], exact: bool) -> None:
    ranks = [rank(number, frames) for number, frames in enumerate(stacks)]
    found = groups.group(ranks, exact)
    assert sorted(each.rank or 0 for group in found for each in group.ranks) == list(range(len(ranks)))
    assert [len(group.ranks) for group in found] == sorted(len(group.ranks) for group in found)


@given(STACKS, st.randoms())
def test_groups_do_not_depend_on_the_order_of_answers(stacks: list[list[Frame]], chance: Any) -> None:
    ranks = [rank(number, frames) for number, frames in enumerate(stacks)]
    shuffled = list(ranks)
    chance.shuffle(shuffled)
    assert ranks_of(groups.group(shuffled)) == ranks_of(groups.group(ranks))


# ---- text and JSON


def summary(*ranks: RankStack) -> str:
    found = dump(*ranks)
    return report.summary(found, groups.group([each for each in found.running if each.threads]))


def test_summary_names_the_odd_rank_and_the_others() -> None:
    ranks = [rank(number, ALL_GATHER if number == 13 else ALL_REDUCE) for number in range(512)]
    assert summary(*ranks) == "rank 13 is in all_gather of gather_stats, 511 others wait in all_reduce of reduce_loss"


def test_summary_of_ranks_with_equal_stacks() -> None:
    assert summary(*[rank(number, ALL_REDUCE) for number in range(4)]) == "all 4 ranks are in all_reduce of reduce_loss"
    assert summary(rank(0, ALL_REDUCE)) == "rank 0 is in all_reduce of reduce_loss"


def test_summary_of_a_rank_that_runs_no_python_function() -> None:
    ending = rank(3, (), threads=(Thread("MainThread", ()),))
    words = "rank 3 is in no Python function: it begins, or ends"
    assert summary(ending) == words
    assert summary(ending, rank(0, ALL_REDUCE), rank(1, ALL_REDUCE)).startswith(f"{words}, 2 others wait")


def test_summary_of_many_groups_is_short() -> None:
    ranks = [rank(number, (own(f"f{number}", 1),)) for number in range(6)]
    first = "rank 0 is in f0, rank 1 is in f1, rank 2 is in f2"
    assert summary(*ranks) == f"{first}, 2 more in 2 other places, rank 5 is in f5"


def test_summary_without_stacks() -> None:
    assert summary(rank(0, (), problem="there is no py-spy")) == "no stack of 1 rank could be had"
    assert summary() == "no rank runs"


def test_text_of_a_hanging_job() -> None:
    stopped = rank(2, ALL_REDUCE, 1, state="T")
    unheard = {"node3": HostError("no answer from node3 port 22 within 10 s", "check that the node is up")}
    ended = rank(4, (), 0, ended=True, code=7)
    others = [rank(0, ALL_REDUCE, waits_in="futex_do_wait"), rank(1, ALL_REDUCE, cpu=0.25), rank(3, ALL_REDUCE, 1)]
    first = "rank 2 is stopped by a signal (state T), in all_reduce of reduce_loss"
    assert report.render("gpt2", dump(*others, stopped, ended, unheard=unheard)).splitlines() == [
        f"job gpt2: {first}, 3 others wait in all_reduce of reduce_loss",
        "",
        "rank 2 on node2: stopped by a signal (state T), in all_reduce of reduce_loss",
        "  pid 4002; state T, CPU 0%",
        "    all_reduce (torch/distributed/distributed_c10d.py:3252)",
        "    _exception_logger.<locals>.wrapper (torch/distributed/c10d_logger.py:83)",
        "  > reduce_loss (train.py:8)",
        "  > train (train.py:16)",
        "  > <module> (train.py:90)",
        "",
        "ranks 0-1,3 (3) on node[1-2]: in all_reduce of reduce_loss",
        "  pid 4000, 4001, 4003; state S, CPU 0% to 25%, in the kernel: futex_do_wait",
        "    all_reduce (torch/distributed/distributed_c10d.py:3252)",
        "    _exception_logger.<locals>.wrapper (torch/distributed/c10d_logger.py:83)",
        "  > reduce_loss (train.py:8)",
        "  > train (train.py:16)",
        "  > <module> (train.py:90)",
        "",
        "rank 4 has ended with code 7",
        "node3: not asked: no answer from node3 port 22 within 10 s",
        "    fix: check that the node is up",
        "to let rank 2 go on: kill -CONT 4002, on node2",
    ]


def test_other_threads_are_counted_and_shown_on_request() -> None:
    loader = Thread("pin_memory", (own("fetch", 3),), active=True)
    busy = rank(0, ALL_REDUCE)
    busy = replace(busy, threads=(*busy.threads, loader, Thread("idle", ())))
    shown = report.render("gpt2", dump(busy))
    assert "threads besides the main one: 1 active (pin_memory), 1 idle (idle); --all shows them" in shown
    assert "> fetch (train.py:3)" not in shown
    assert "    > fetch (train.py:3)" in report.render("gpt2", dump(busy), everything=True)


def test_deep_stack_is_cut_unless_everything_is_requested() -> None:
    deep = rank(0, [own(f"f{depth}", depth + 1) for depth in range(20)])
    assert "… 8 more of its frames: --all" in report.render("gpt2", dump(deep))
    assert "f19 (train.py:20)" in report.render("gpt2", dump(deep), everything=True)


def test_process_without_rank_is_shown_once_with_its_host() -> None:
    frozen = Frame("exec_module", "<frozen importlib._bootstrap_external>", 940)
    shown = report.render("gpt2", dump(rank(None, (frozen, MAIN))))
    assert "\nagent on node1: in an import of train.py\n" in shown
    assert "exec_module" not in shown  # frames inside an import are hidden
    assert "… 1 more of its frames: --all" in shown


def test_text_of_an_ended_job_points_to_fab_why() -> None:
    shown = report.render("gpt2", dump(rank(0, (), ended=True, code=7)))
    assert shown == "job gpt2: no rank runs; how it ended: fab why gpt2\n\nrank 0 has ended with code 7"


def test_differing_lines_in_a_group_are_shown_as_a_range() -> None:
    alike = [rank(0, (own("compute", 3), own("train", 9))), rank(1, (own("compute", 7), own("train", 9)))]
    shown = report.render("gpt2", dump(*alike))
    assert "compute (train.py:3-7)" in shown
    assert "train (train.py:9)" in shown


def test_text_has_no_escape_sequences() -> None:
    evil = Frame("\x1b[2Jf", "/x/\x1b]0;t\x07.py", 3, "\x1b[2J")
    shown = report.render("gpt2", dump(rank(0, (evil,))), everything=True)
    assert "\x1b" not in shown


def test_json_has_all_threads_of_all_ranks() -> None:
    document = json.loads(json.dumps(report.as_json("gpt2", dump(rank(0, ALL_REDUCE), rank(1, (), 1, problem="boom")))))
    assert [each["ranks"] for each in document["groups"]] == [[0]]
    assert document["groups"][0]["own_frame"]["function"] == "reduce_loss"
    assert [(each["rank"], each["problem"]) for each in document["ranks"]] == [(0, None), (1, "py-spy: boom")]
    assert document["ranks"][0]["threads"][0]["frames"][0]["function"] == "all_reduce"


def test_answer_is_converted_to_values() -> None:
    thread = {"name": "MainThread", "active": True, "gil": True, "frames": [["f", TRAIN, 3, "x = 1"]]}
    report_of_rank = {"process": "agent", "rank": 0, "pid": 7, "ended": None, "code": None, "state": "R", "cpu": 1.0}
    answer = {"ranks": [{**report_of_rank, "threads": [thread]}], "spy": "sent", "rights": {}, "machine": "x86_64"}
    (found,) = from_answer(NODES[0], answer).ranks
    assert found.frames == (Frame("f", TRAIN, 3, "x = 1"),)
    assert (found.rank, found.state, found.ended) == (0, "R", False)


# ---- missing stacks

PRIVATE = "Failed to get process executable name. Check that the process is running.: Permission denied (os error 13)"


@pytest.mark.parametrize(
    ("problem", "rights", "words", "fix"),
    [
        ("Permission Denied: Try running again", {"ptrace_scope": "1", "uid": 1000}, "ptrace_scope is 1", "sysctl"),
        (PRIVATE, {"ptrace_scope": "2", "uid": 1000}, "ptrace_scope is 2 (only root)", "ptrace_scope=0"),
        (PRIVATE, {"ptrace_scope": "3", "uid": 0, "cap_sys_ptrace": True}, "is 3 (nobody", "faulthandler"),
        (
            PRIVATE,
            {"ptrace_scope": "0", "uid": 0, "cap_sys_ptrace": False},
            "no CAP_SYS_PTRACE",
            "--cap-add SYS_PTRACE",
        ),
        (PRIVATE, {"ptrace_scope": "", "uid": 1000}, "another user", "log in as the user"),
        ("there is no py-spy", {}, "no py-spy there", "pip install py-spy"),
        ("Failed to find python version from target process", {}, "no Python program", "faulthandler"),
        ("no answer from py-spy within 10 s", {}, "no answer", "--timeout 60"),
        ("boom", {}, "py-spy: boom", "faulthandler"),
    ],
)
def test_missing_stack_is_explained_with_a_fix(problem: str, rights: dict[str, Any], words: str, fix: str) -> None:
    what, how = explain(rank(0, (), problem=problem, signal="it does not catch SIGUSR2"), rights)
    assert words in what
    assert "by signal: it does not catch SIGUSR2" in what
    assert fix in how


def test_attached_debugger_is_named() -> None:
    assert explain(rank(0, (), tracer=77), {})[1] == "end that one first: kill 77"


def test_ranks_with_the_same_reason_share_a_paragraph() -> None:
    refused = [rank(number, (), number % 2, problem=PRIVATE) for number in range(4)]
    shown = report.render("gpt2", dump(*refused, ptrace_scope="1", uid=1000))
    assert shown.count("no stack of ranks 0-3 (node[1-2])") == 1
    assert shown.count("fix:") == 1

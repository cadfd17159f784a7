"""The report on the stacks of a job: its summary, text and JSON."""

from __future__ import annotations

from dataclasses import replace

from tests.json_documents import checked
from tests.stacks.factories import ALL_GATHER, ALL_REDUCE, MAIN, PRIVATE, dump, own, rank
from torchfab.core.errors import HostError
from torchfab.stacks import groups, report
from torchfab.stacks.model import Frame, RankStack, Thread


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
    words = "rank 3 is in no Python function: it is starting or ending"
    assert summary(ending) == words
    assert summary(ending, rank(0, ALL_REDUCE), rank(1, ALL_REDUCE)).startswith(f"{words}, 2 others wait")


def test_summary_of_many_groups_is_short() -> None:
    ranks = [rank(number, (own(f"f{number}", 1),)) for number in range(6)]
    first = "rank 0 is in f0, rank 1 is in f1, rank 2 is in f2"
    assert summary(*ranks) == f"{first}, 2 more in 2 other places, rank 5 is in f5"


def test_summary_without_stacks() -> None:
    assert summary(rank(0, (), problem="there is no py-spy")) == "no stack of 1 rank is available"
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
    document = checked("stacks", report.as_json("gpt2", dump(rank(0, ALL_REDUCE), rank(1, (), 1, problem="boom"))))
    assert [each["ranks"] for each in document["groups"]] == [[0]]
    assert document["groups"][0]["own_frame"]["function"] == "reduce_loss"
    assert [(each["rank"], each["problem"]) for each in document["ranks"]] == [(0, None), (1, "py-spy: boom")]
    assert document["ranks"][0]["threads"][0]["frames"][0]["function"] == "all_reduce"


def test_ranks_with_the_same_reason_share_a_paragraph() -> None:
    refused = [rank(number, (), number % 2, problem=PRIVATE) for number in range(4)]
    shown = report.render("gpt2", dump(*refused, ptrace_scope="1", uid=1000))
    assert shown.count("no stack of ranks 0-3 (node[1-2])") == 1
    assert shown.count("fix:") == 1

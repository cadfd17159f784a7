"""What `fab stop` says of how the ranks ended."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from torchfab.commands import stop
from torchfab.core.specs import Node
from torchfab.runtimes import StopReport


def report(ended: int, killed: int, seconds: float = 0.0) -> StopReport:
    return StopReport(Node(0, "node1"), 1, ended_ranks=ended, killed_ranks=killed, ranks_s=seconds)


@pytest.mark.parametrize(
    ("reports", "text"),
    [
        ([], ""),
        ([report(0, 0)], ""),
        ([report(1, 0, 0.2)], "1 rank ended by itself (1 s)"),
        ([report(2, 0, 0.2), report(2, 0, 40.4)], "4 ranks ended by themselves (41 s)"),
        ([report(0, 1)], "1 rank was killed after 60 s (--grace gives more time)"),
        (
            [report(3, 2, 40.4), report(1, 0, 3.0)],
            "4 ranks ended by themselves (41 s), 2 were killed after 60 s (--grace gives more time)",
        ),
        ([report(1, 1, 5.0)], "1 rank ended by itself (5 s), 1 was killed after 60 s (--grace gives more time)"),
    ],
)
def test_the_ends_of_all_nodes_are_summed_up(reports: list[StopReport], text: str) -> None:
    assert stop._ranks_summary(reports, 60.0) == text


@pytest.mark.parametrize(
    ("writing", "text"),
    [
        ((), "handling SIGTERM"),
        (("/x/step-5.part",), "saving, /x/step-5.part still open for writing"),
        (("/x/a", "/x/b", "/x/c"), "saving, /x/a and 2 other files still open for writing"),
    ],
)
def test_what_killed_ranks_had_not_finished_is_said(writing: tuple[str, ...], text: str) -> None:
    killed = StopReport(Node(0, "a"), 1, killed_ranks=2, unfinished_ranks=1, writing=writing)
    expected = f"2 ranks were killed after 60 s: 1 had not finished {text} (--grace gives more time)"
    assert stop._ranks_summary([killed], 60.0) == expected


def found(node: str, proof: str, left: tuple[str, ...] = ()) -> StopReport:
    return StopReport(Node(0, node), 2, left=left, proof=proof, seconds=1.2)


@pytest.mark.parametrize(
    ("reports", "text"),
    [
        ([found("node1", "cgroup"), found("node2", "cgroup")], " (verified by the kernel's cgroup)"),
        ([found("node1", "proc")], " (verified by searching /proc as this user)"),
        (
            [found("node1", "cgroup"), found("node2", "proc"), found("node3", "proc")],
            " (verified by the kernel's cgroup on node1, verified by searching /proc as this user on node[2-3])",
        ),
        ([found("Slurm job 7", "slurm")], " (as Slurm reports)"),
        ([found("node1", "")], ""),
    ],
)
def test_the_means_of_the_proof_are_said(reports: list[StopReport], text: str) -> None:
    assert stop._means(reports) == text


def test_processes_that_are_left_are_named_with_their_users() -> None:
    one = "4711 (sleep 600) of user root"
    assert stop._stop_summary(found("node1", "proc", (one,))) == f"1 process is left and cannot be ended: {one}"
    many = stop._stop_summary(found("node1", "proc", tuple(f"{pid} (sleep) of user root" for pid in range(12))))
    assert many.startswith("12 processes are left and cannot be ended: 0 (sleep) of user root, 1 (sleep)")
    assert many.endswith(", and 2 more")


def test_what_was_removed_is_counted() -> None:
    assert stop._cleared_summary([report(1, 0)]) == ""
    reports = [
        StopReport(Node(0, "a"), cleared_files=2, cleared_bytes=3 * 2**20, cleared_folders=1),
        StopReport(Node(1, "b"), cleared_files=1, cleared_bytes=2**20),
    ]
    text = "removed what its processes had left: 3 files of shared memory (4 MiB), 1 temporary folder"
    assert stop._cleared_summary(reports) == text


@pytest.mark.parametrize(
    ("handler", "survives"), [("SIG_DFL", False), ("SIG_IGN", True), ("default_int_handler", True)]
)
def test_a_program_that_would_die_of_the_stop_signal_does_not_get_it(handler: str, survives: bool) -> None:
    code = f"import signal, sys; signal.signal({int(signal.SIGUSR1)}, signal.{handler}); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert stop._survives_stop_signal(process.pid, within_s=0.1) is survives
        process.communicate(b"\n")

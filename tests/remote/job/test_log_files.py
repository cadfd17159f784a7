"""The log files of a process, their ranks, and the times of their lines."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchfab.launchers.per_node import RANK_LOGS
from torchfab.remote import job_files
from torchfab.remote.job import log_files
from torchfab.remote.job.log_files import LogFile, Timeline, WriteTimes

RANKS: list[dict[str, Any]] = [
    {"rank": 4, "local_rank": 0, "attempt": 0},
    {"rank": 5, "local_rank": 1, "attempt": 0},
    {"rank": 6, "local_rank": 0, "attempt": 1},
    {"rank": None, "local_rank": 1, "attempt": 1},
]


def write(folder: Path, path: str, text: str = "x") -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)


def test_the_logs_of_torchruns_ranks_are_found_with_their_ranks(tmp_path: Path) -> None:
    for attempt, local in ((0, 0), (0, 1), (1, 0), (1, 1)):
        write(tmp_path, f"logs/gpt2-01_x8/attempt_{attempt}/{local}/stdout.log")
    write(tmp_path, "logs/gpt2-01_x8/attempt_0/1/stderr.log")
    write(tmp_path, "logs/gpt2-01_x8/attempt_0/1/error.json")
    write(tmp_path, "errors/error.json")
    found = log_files.find(str(tmp_path), {"rank": None, "rank_logs": RANK_LOGS})
    assert [(log.path, log.label(RANKS)) for log in found] == [
        ("output.log", "agent"),
        ("logs/gpt2-01_x8/attempt_0/0/stdout.log", 4),
        ("logs/gpt2-01_x8/attempt_0/1/stderr.log", 5),
        ("logs/gpt2-01_x8/attempt_0/1/stdout.log", 5),
        ("logs/gpt2-01_x8/attempt_1/0/stdout.log", 6),
        ("logs/gpt2-01_x8/attempt_1/1/stdout.log", "local 1"),
    ]


def test_the_output_of_a_process_that_is_a_rank_is_that_ranks(tmp_path: Path) -> None:
    (log,) = log_files.find(str(tmp_path), {"rank": 3, "rank_logs": ""})
    assert (log.label([]), log.full_path) == (3, str(tmp_path / "output.log"))


def test_a_path_may_contain_the_rank_itself(tmp_path: Path) -> None:
    write(tmp_path, "logs/rank-12.log")
    found = log_files.find(str(tmp_path), {"rank_logs": r"logs/rank-(?P<rank>\d+)\.log"})
    assert [log.label([]) for log in found] == ["agent", 12]


def test_a_missing_file_has_size_0(tmp_path: Path) -> None:
    write(tmp_path, "a", "abc")
    assert [log_files.size(str(tmp_path / name)) for name in ("a", "b")] == [3, 0]


# ---- time


def test_a_byte_has_the_time_of_the_growth_that_includes_it(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path), "output.log")
    timeline = Timeline(str(tmp_path))
    for when, length in ((100.0, 10), (110.0, 25), (120.0, 40)):
        write(tmp_path, "output.log", "x" * length)
        timeline.record([log], when)
    os.utime(tmp_path / "output.log", (130.0, 130.0))
    write_times = WriteTimes(str(tmp_path))
    assert [write_times.time_of(log, offset) for offset in (1, 10, 11, 25, 26, 40, 41)] == [
        100,
        100,
        110,
        110,
        120,
        120,
        130,
    ]


def test_growth_is_recorded_at_most_once_per_second(tmp_path: Path) -> None:
    log, timeline = LogFile(str(tmp_path), "it's a log.txt"), Timeline(str(tmp_path))
    for when, length in ((100.0, 0), (101.0, 10), (101.5, 20), (102.0, 30), (105.0, 30)):
        write(tmp_path, "it's a log.txt", "x" * length)
        timeline.record([log], when)
    path = tmp_path / job_files.TIMELINE
    assert path.read_text() == "101.00 10 it's a log.txt\n102.00 30 it's a log.txt\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_beyond_the_timeline_is_not_sorted_before_it(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path), "output.log")
    write(tmp_path, "output.log", "x" * 10)
    Timeline(str(tmp_path)).record([log], 100.0)
    os.utime(tmp_path / "output.log", (99.99, 99.99))  # the kernel's stamps are some milliseconds behind
    assert [WriteTimes(str(tmp_path)).time_of(log, offset) for offset in (10, 11)] == [100.0, 100.0]


def test_an_unusable_timeline_only_loses_the_times(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path), "output.log")
    write(tmp_path, "output.log")
    os.utime(tmp_path / "output.log", (130.0, 130.0))
    (tmp_path / job_files.TIMELINE).mkdir()
    Timeline(str(tmp_path)).record([log], 100.0)
    assert WriteTimes(str(tmp_path)).time_of(log, 1) == 130.0
    assert WriteTimes(str(tmp_path)).time_of(LogFile(str(tmp_path), "gone"), 1) == 0.0


@pytest.mark.parametrize("line", ["", "100.0", "100.0 x output.log", "x 5 output.log", "100.00 1"])
def test_a_line_cut_short_by_a_full_disk_is_skipped(line: str, tmp_path: Path) -> None:
    (tmp_path / job_files.TIMELINE).write_text(f"{line}\n100.00 10 output.log\n{line}")
    assert WriteTimes(str(tmp_path)).time_of(LogFile(str(tmp_path), "output.log"), 5) == 100.0


@settings(max_examples=40)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=15))
def test_times_never_run_backwards(growths: list[int]) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        log, timeline, end = LogFile(name, "output.log"), Timeline(name), 0
        for index, growth in enumerate(growths):
            end += growth
            write(folder, "output.log", "x" * end)
            timeline.record([log], 100.0 + index)
        os.utime(folder / "output.log", (500.0, 500.0))
        write_times = WriteTimes(name)
        times = [write_times.time_of(log, offset) for offset in range(1, end + 1)]
        assert times == sorted(times)
        assert all(100 <= when < 100 + len(growths) for when in times)

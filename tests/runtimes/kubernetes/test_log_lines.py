"""Log lines of pods: labels, and no duplicates."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.support import fuzzed
from torchfab.runtimes.kubernetes.log_lines import PodLogReader, last_line, split_label, split_lines
from torchfab.runtimes.kubernetes.status import parse_time

ALL: dict[str, Any] = {"ranks": None, "grep": None, "lines": None}


def line(second: float, text: str) -> bytes:
    return f"2026-11-20T10:00:{second:012.9f}Z {text}\n".encode()


def test_times_are_parsed_to_float_precision() -> None:
    assert parse_time("2026-11-20T10:00:00.5Z") == parse_time("2026-11-20T10:00:00Z") + 0.5  # type: ignore[operator]
    assert [parse_time(text) for text in (None, "", "never", "2026-13-01T00:00:00Z")] == [None] * 4


def test_time_zone_of_a_machine_does_not_shift_log_times() -> None:
    utc = parse_time("2026-11-20T10:00:00.5Z")
    assert parse_time("2026-11-20T12:00:00.500000000+02:00") == utc
    assert parse_time("2026-11-20T04:30:00.5-05:30") == utc
    assert parse_time("2026-11-20T12:00:00+02:00") == parse_time("2026-11-20T10:00:00Z")


def test_line_is_labelled_with_its_rank() -> None:
    assert split_label("[rank12]: a", 4) == (12, " a")
    assert split_label("[default3]:a", 4) == (7, "a")
    assert split_label("W1120 agent", 4) == ("agent", "W1120 agent")
    assert split_label("x [rank1]:", 4) == ("agent", "x [rank1]:")


@fuzzed(st.lists(st.binary(max_size=8)))
def test_blocks_may_be_cut_anywhere(blocks: list[bytes]) -> None:
    whole = b"".join(blocks)
    assert list(split_lines(blocks)) == list(split_lines([whole]))


def test_progress_bar_keeps_only_its_last_state() -> None:
    blocks = [line(1, "[rank0]: 10%\r[rank0]: 20%\r[rank0]: 30%")]
    assert [text for _, _, text in PodLogReader(0, ALL).new_lines(blocks)] == [" 30%"]


def test_second_connection_yields_only_new_lines() -> None:
    reader = PodLogReader(0, ALL)
    first = [line(1, "a"), line(2, "b"), line(2, "c")]
    assert [text for _, _, text in reader.new_lines(first)] == ["a", "b", "c"]
    again = [line(1, "a"), line(2, "b"), line(2, "c"), line(2, "d"), line(1.999, "late, of the other stream")]
    assert [text for _, _, text in reader.new_lines(again)] == ["d", "late, of the other stream"]


def test_long_log_keeps_little_state() -> None:
    reader = PodLogReader(0, ALL)
    for _ in reader.new_lines(line(second / 10, f"line {second}") for second in range(500)):
        pass
    assert len(reader.known) == len(reader.recent) < 60


def test_last_lines_of_each_rank_stay_in_order() -> None:
    blocks = [line(index, f"[rank{index % 2}]:{index}") for index in range(10)]
    assert [text for _, _, text in PodLogReader(0, {**ALL, "lines": 2}).read_backlog(blocks)] == ["6", "7", "8", "9"]
    assert [text for _, _, text in PodLogReader(0, {**ALL, "ranks": [1], "grep": "[35]"}).read_backlog(blocks)] == [
        "3",
        "5",
    ]


def test_node_error_inside_the_stream_is_shown() -> None:
    blocks = [line(1, "a"), b"unable to retrieve container logs for containerd://0\n"]
    texts = [text for _, _, text in PodLogReader(0, ALL).new_lines(blocks)]
    assert texts == ["a", "unable to retrieve container logs for containerd://0"]


def test_last_line_skips_blank_lines() -> None:
    found = last_line([line(1, "[rank0]:loss=5"), line(2, "[rank0]: ")], 0)
    assert found == {"time": parse_time("2026-11-20T10:00:01Z"), "text": "loss=5", "label": 0}
    assert last_line([], 0) is None


def test_invalid_utf8_is_replaced() -> None:
    assert [text for _, _, text in PodLogReader(0, ALL).new_lines([line(1, "x")[:-1] + b"\xff\n"])] == ["x\ufffd"]

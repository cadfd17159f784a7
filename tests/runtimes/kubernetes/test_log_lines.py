"""Log lines of pods: whose they are, and none twice."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.support import fuzzed
from torchfab.runtimes.kubernetes.log_lines import Reader, label_of, last_line, lines_of
from torchfab.runtimes.kubernetes.status import seconds

ALL: dict[str, Any] = {"ranks": None, "grep": None, "lines": None}


def line(second: float, text: str) -> bytes:
    return f"2026-11-20T10:00:{second:012.9f}Z {text}\n".encode()


def test_times_are_read_to_the_nanosecond_as_far_as_a_float_goes() -> None:
    assert seconds("2026-11-20T10:00:00.5Z") == seconds("2026-11-20T10:00:00Z") + 0.5  # type: ignore[operator]
    assert [seconds(text) for text in (None, "", "never", "2026-13-01T00:00:00Z")] == [None] * 4


def test_a_machine_s_time_zone_does_not_move_the_times_of_its_logs() -> None:
    utc = seconds("2026-11-20T10:00:00.5Z")
    assert seconds("2026-11-20T12:00:00.500000000+02:00") == utc
    assert seconds("2026-11-20T04:30:00.5-05:30") == utc
    assert seconds("2026-11-20T12:00:00+02:00") == seconds("2026-11-20T10:00:00Z")


def test_a_line_says_whose_it_is() -> None:
    assert label_of("[rank12]: a", 4) == (12, " a")
    assert label_of("[default3]:a", 4) == (7, "a")
    assert label_of("W1120 agent", 4) == ("agent", "W1120 agent")
    assert label_of("x [rank1]:", 4) == ("agent", "x [rank1]:")


@fuzzed(st.lists(st.binary(max_size=8)))
def test_blocks_may_be_cut_anywhere(blocks: list[bytes]) -> None:
    whole = b"".join(blocks)
    assert list(lines_of(blocks)) == list(lines_of([whole]))


def test_of_a_progress_bar_the_last_state_is_kept() -> None:
    blocks = [line(1, "[rank0]: 10%\r[rank0]: 20%\r[rank0]: 30%")]
    assert [text for _, _, text in Reader(0, ALL).take(blocks)] == [" 30%"]


def test_a_second_connection_tells_only_what_is_new() -> None:
    reader = Reader(0, ALL)
    first = [line(1, "a"), line(2, "b"), line(2, "c")]
    assert [text for _, _, text in reader.take(first)] == ["a", "b", "c"]
    again = [line(1, "a"), line(2, "b"), line(2, "c"), line(2, "d"), line(1.999, "late, of the other stream")]
    assert [text for _, _, text in reader.take(again)] == ["d", "late, of the other stream"]


def test_what_is_remembered_of_a_long_log_is_little() -> None:
    reader = Reader(0, ALL)
    for _ in reader.take(line(second / 10, f"line {second}") for second in range(500)):
        pass
    assert len(reader.known) == len(reader.recent) < 60


def test_the_last_lines_of_each_rank_in_their_order() -> None:
    blocks = [line(index, f"[rank{index % 2}]:{index}") for index in range(10)]
    assert [text for _, _, text in Reader(0, {**ALL, "lines": 2}).past(blocks)] == ["6", "7", "8", "9"]
    assert [text for _, _, text in Reader(0, {**ALL, "ranks": [1], "grep": "[35]"}).past(blocks)] == ["3", "5"]


def test_an_error_of_the_nodes_in_the_stream_is_shown() -> None:
    blocks = [line(1, "a"), b"unable to retrieve container logs for containerd://0\n"]
    texts = [text for _, _, text in Reader(0, ALL).take(blocks)]
    assert texts == ["a", "unable to retrieve container logs for containerd://0"]


def test_the_last_line_that_says_something() -> None:
    found = last_line([line(1, "[rank0]:loss=5"), line(2, "[rank0]: ")], 0)
    assert found == {"time": seconds("2026-11-20T10:00:01Z"), "text": "loss=5", "label": 0}
    assert last_line([], 0) is None


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert [text for _, _, text in Reader(0, ALL).take([line(1, "x")[:-1] + b"\xff\n"])] == ["x\ufffd"]

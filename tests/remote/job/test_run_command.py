"""Output of a command: complete lines, bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from torchfab.remote.job.run_command import Output

PIECES = st.lists(st.binary(max_size=40), max_size=30)


def lines_of(output: Output, pieces: list[bytes]) -> list[str]:
    return [*(line for piece in pieces for line in output.feed(piece)), *output.finish()]


@given(PIECES)
def test_any_bytes_become_the_same_lines_however_they_arrive(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    assert lines_of(Output(1 << 20), pieces) == lines_of(Output(1 << 20), [data])


def test_text_is_kept() -> None:
    assert lines_of(Output(1 << 20), [b"a\n", b"b", "ü\n\nno end".encode()]) == ["a", "bü", "", "no end"]


def test_of_a_progress_bar_the_last_state_is_kept() -> None:
    assert lines_of(Output(1 << 20), [b"1 %\r", b"50 %\r100 %\r\nend\r\n"]) == ["100 %", "end"]


def test_of_long_output_the_begin_and_the_end_are_kept() -> None:
    output = Output(2000)
    lines = lines_of(output, [b"%09d\n" % number for number in range(100_000)])
    assert lines[:2] == ["000000000", "000000001"]
    assert lines[-1] == "000099999"
    (gap,) = [index for index, line in enumerate(lines) if line.startswith("[")]
    assert lines[gap] == f"[{output.dropped} bytes left out here]"
    assert output.dropped + 10 * (len(lines) - 1) == 1_000_000
    assert all(len(line) == 9 for line in lines[gap + 1 :])


def test_a_line_without_end_is_cut_and_bounded() -> None:
    output = Output(1 << 20)
    lines = lines_of(output, [b"\0" * 65_536] * 400)
    assert sum(map(len, lines)) < (1 << 20) + 65_536 + 50
    assert output.dropped > 24_000_000

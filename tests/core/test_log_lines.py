"""Folding and cleaning of log lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile import HOSTILE
from tests.support import fuzzed
from torchfab.core.log_lines import (
    FoldedLine,
    Line,
    batches,
    fold_lines,
    has_controls,
    lines_of_host,
    render_lines,
    strip_controls,
)

LABELS = st.one_of(st.integers(0, 5), st.sampled_from(["agent", "local 0"]))
LINES = st.lists(
    st.builds(
        Line,
        host=st.sampled_from(["node1", "node2", "[::1]:22"]),
        label=LABELS,
        time=st.floats(0, 10),
        text=st.one_of(st.sampled_from(["", "a", "loss 2.1"]), st.text(max_size=5)),
    ),
    max_size=40,
)


def lines(*written: tuple[str, int | str, str]) -> list[Line]:
    return [Line(host, label, 0.0, text) for host, label, text in written]


def shown(*written: tuple[str, int | str, str], folding: bool = True) -> list[str]:
    return [str(line) for line in fold_lines(lines(*written), folding)]


def test_equal_lines_of_many_ranks_are_folded_into_one() -> None:
    written = [(f"node{1 + rank // 8}", rank, "step 1") for rank in range(64)]
    assert shown(*written) == ["node[1-8] [0-63] step 1"]


def test_without_folding_every_line_is_kept() -> None:
    assert shown(("a", 0, "x"), ("b", 1, "x"), folding=False) == ["a [0] x", "b [1] x"]


def test_a_folded_line_has_the_position_of_its_first_line() -> None:
    written = [("a", 0, "x"), ("a", 0, "y"), ("a", 1, "x"), ("a", 1, "y"), ("a", 2, "z")]
    assert shown(*written) == ["a [0-1] x", "a [0-1] y", "a [2] z"]


def test_a_line_that_a_rank_repeats_is_kept_twice() -> None:
    assert shown(("a", 0, "x"), ("a", 0, "x"), ("a", 1, "x")) == ["a [0-1] x", "a [0] x"]


def test_a_launchers_line_is_not_folded_with_a_ranks() -> None:
    assert shown(("a", "agent", "x"), ("a", 0, "x"), ("b", "agent", "x")) == ["a,b [agent] x", "a [0] x"]


@fuzzed(LINES, st.booleans())
def test_folding_loses_no_line(written: list[Line], folding: bool) -> None:
    folded = fold_lines(written, folding)
    assert sum(len(line.labels) for line in folded) == len(written)
    assert {line.text for line in folded} == {line.text for line in written}
    for line in folded:
        assert set(line.hosts) <= {each.host for each in written if each.text == line.text}


@given(LINES)
def test_lines_of_one_rank_keep_their_order_without_folding(written: list[Line]) -> None:
    assert [(line.hosts[0], line.labels[0], line.text) for line in fold_lines(written, folding=False)] == [
        (line.host, line.label, line.text) for line in written
    ]


@fuzzed(LINES, st.booleans())
def test_many_lines_are_rendered_like_single_ones(written: list[Line], folding: bool) -> None:
    assert render_lines(written, folding) == "\n".join(map(str, fold_lines(written, folding)))


def test_one_line_with_an_escape_sequence_among_many_is_stripped() -> None:
    written = lines(("a", 0, "step 1"), ("b", 1, "\x1b[2Jgone\nb [7] forged"), ("a", 2, "tab\tstays"))
    assert render_lines(written).split("\n") == ["a [0] step 1", "b [1] goneb [7] forged", "a [2] tab\tstays"]


def test_lines_of_a_node_get_its_host() -> None:
    assert lines_of_host("a", [[0, 1.0, "x"], ("agent", 2.0, "y")]) == [
        Line("a", 0, 1.0, "x"),
        Line("a", "agent", 2.0, "y"),
    ]


@given(LINES, st.floats(0, 3))
def test_batches_contain_every_line_once_sorted_by_time(written: list[Line], window_s: float) -> None:
    found = list(batches(written, window_s))
    assert [line for batch in found for line in batch] == sorted(written, key=lambda line: line.time)
    assert all(batch[-1].time - batch[0].time <= window_s for batch in found)


# ---- control characters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[1;1Hgone", "gone"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]0;never ended", ""),
        ("\x1b[38;5;196mdeep", "deep"),
        ("\x1bcreset", "reset"),
        ("\x1b(B\x1b[mplain\x1b7\x1b8\x1b=", "plain"),
        ("\x1bP1;2qsixel\x1b\\text", "text"),
        ("ends with \x1b", "ends with "),
        ("a\x08b\x00c\x7fd", "abcd"),
        ("tab\tstays", "tab\tstays"),
        ("line\x0bfeed\x0cs\x85", "linefeeds"),
        ("\x9b31mred", "31mred"),
        ("50%|█████ é 日本", "50%|█████ é 日本"),
        ("", ""),
    ],
)
def test_escape_sequences_and_control_characters_are_stripped(text: str, expected: str) -> None:
    assert strip_controls(text) == expected


@fuzzed(st.one_of(st.text(), st.sampled_from(list(HOSTILE.values())), st.text("\x1b[]0;mPc\\\x07\x9ba", max_size=20)))
def test_no_control_character_is_printed(text: str) -> None:
    printed = str(FoldedLine(("a",), (0,), text))
    assert not [char for char in printed if (ord(char) < 32 and char != "\t") or 127 <= ord(char) < 160]


@fuzzed(st.text("ab\t\n\x00\x1b\x7f\x85\x9b\u2588", max_size=6))
def test_text_without_controls_needs_no_stripping(text: str) -> None:
    assert has_controls(text) or strip_controls(text) == text


@given(st.text(st.characters(exclude_categories=("Cc", "Cs"))))
def test_printable_text_is_not_changed(text: str) -> None:
    assert strip_controls(text) == text

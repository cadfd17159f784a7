"""A line of a hosts file as words."""

from __future__ import annotations

import pytest

from torchfab.core.hostlines import words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("node1 slots=4  # fast", ("node1", "slots=4")),
        ("  # only a comment", ()),
        ("; a comment of an ini file", ()),
        ("", ()),
        ("node1 setup='a # b'", ("node1", "setup='a # b'")),
        ("node1 it's", ("node1", "it's")),
        ("node1;x", ("node1;x",)),
    ],
)
def test_a_line_is_split_into_words_without_its_comment(text: str, expected: tuple[str, ...]) -> None:
    assert words.split_words(text) == expected


def test_a_list_with_blanks_is_one_word_and_a_value_keeps_its_own() -> None:
    assert words.split_line("a, b ,c slots=2") == ("a,b,c", "slots=2")
    assert words.split_line('a setup="x, y"') == ("a", 'setup="x, y"')


def test_lines_have_the_place_they_stand_at() -> None:
    found = list(words.lines_of("\ufeffnode1\n\n# no\nnode2 slots=1\n", "hosts"))
    assert [(line.origin, line.words) for line in found] == [("hosts:1", ("node1",)), ("hosts:4", ("node2", "slots=1"))]
    assert [line.origin for line in words.lines_of("node1", "-H")] == ["-H"]


@pytest.mark.parametrize(("value", "expected"), [('"a b"', "a b"), ("'a'", "a"), ('"a', '"a'), ('"', '"'), ("a", "a")])
def test_quotes_around_a_value_are_removed(value: str, expected: str) -> None:
    assert words.unquote(value) == expected

"""Splitting of shell scripts into simple commands."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from tests.hostile import HOSTILE
from tests.support import fuzzed
from torchfab.importers.shell_scanner import Statement, Unclosed, find_unclosed, statements

SCRIPTS: dict[str, tuple[str, list[tuple[int, list[str]]]]] = {
    "lines and operators": (
        "a b; c && d\ne | f &\n",
        [(1, ["a", "b"]), (1, ["c"]), (1, ["d"]), (2, ["e"]), (2, ["f"])],
    ),
    "comments": ("# one\na # two\nb#c\n", [(2, ["a"]), (3, ["b#c"])]),
    "quotes": ("a 'b c' \"d e\" f\\ g\n", [(1, ["a", "'b c'", '"d e"', "f\\ g"])]),
    "a text over several lines": ('A="b \\\n  c"\nd\n', [(1, ['A="b   c"']), (3, ["d"])]),
    "a continued line": ("a \\\n  b\nc\n", [(1, ["a", "b"]), (3, ["c"])]),
    "substitutions": ("a $(b | c; d) `e f` ${g:-h i}\n", [(1, ["a", "$(b | c; d)", "`e f`", "${g:-h i}"])]),
    "substitutions in quotes": ('a "$(b "c d")" "${e}"\n', [(1, ["a", '"$(b "c d")"', '"${e}"'])]),
    "an array": ("a=( b $(c) )\nd\n", [(1, ["a=( b $(c) )"]), (2, ["d"])]),
    "redirections": ("a > b 2>&1 < c &> d 2>/dev/null e\n", [(1, ["a", "e"])]),
    "a here-document": ("cat <<EOF > x\na; b\nEOF\nc\n", [(1, ["cat"]), (4, ["c"])]),
    "a here-document with tabs": ("cat <<-'E'\n\ta\n\tE\nc\n", [(1, ["cat"]), (4, ["c"])]),
    "keywords": ("if a; then\n  b\nelse c; fi\n", [(1, ["a"]), (2, ["b"]), (3, ["c"])]),
    "a subshell": ("(a b)\n", [(1, ["a", "b"])]),
    "a loop": ("for h in a b; do\n  c $h\ndone\n", [(1, ["for", "h", "in", "a", "b"]), (2, ["c", "$h"])]),
}


@pytest.mark.parametrize(("script", "expected"), SCRIPTS.values(), ids=SCRIPTS)
def test_a_script_is_split_into_its_simple_commands(script: str, expected: list[tuple[int, list[str]]]) -> None:
    assert [(each.number, list(each.words)) for each in statements(script)] == expected


def test_a_command_knows_whether_it_is_piped_and_where_it_writes() -> None:
    assert statements("a | b > $out\n") == [Statement(1, ("a",)), Statement(1, ("b",), piped=True, writes="$out")]


PIECES = st.sampled_from(
    [*"abc '\"`\\\n$(){};|&<>#=~", "$(", "${", "$((", "<<E", "\nE\n", "&&", "2>&1", "if ", "; then ", "A=", "=("]
)


@fuzzed(
    st.one_of(
        st.text(max_size=200), st.lists(PIECES, max_size=40).map("".join), st.sampled_from(list(HOSTILE.values()))
    )
)
def test_any_text_is_split(text: str) -> None:
    found = find_unclosed(text)
    assert found is None or text.endswith(found.text)
    for each in statements(text):
        assert each.words
        assert 1 <= each.number <= text.count("\n") + 1


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("a\nb 'c d\ne\n", Unclosed(2, "'", "'c d\ne\n")),
        ('a --name "my run\nb\n', Unclosed(1, '"', '"my run\nb\n')),
        ('a > "b\nc\n', Unclosed(1, '"', '"b\nc\n')),
        ("a x'y' z'", Unclosed(1, "'", "'")),
        ("a $(b\n", Unclosed(1, "$", "$(b\n")),
        ("a `b\n", Unclosed(1, "`", "`b\n")),
        ("A=( b\nc\n", Unclosed(1, "(", "( b\nc\n")),
        ("a 'b' \"c'\" $(d 'e') `f` ${g:-h} $'i\\'' A=( 'j' )", None),
        ("a # don't\n", None),
        ("cat <<E\ndon't\nE\nb\n", None),
        ("a b\\", None),
        ("", None),
    ],
)
def test_a_quote_or_bracket_without_its_end_is_found(script: str, expected: Unclosed | None) -> None:
    assert find_unclosed(script) == expected

"""Expansion of words, compared with what bash makes of them; and what is left to a shell."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import strategies as st

from tests.support import fuzzed
from torchfab.importers.draft import is_dynamic, source_of
from torchfab.importers.shell_scanner import statements
from torchfab.importers.shell_words import Expander

VARIABLES = {"A": "one", "B": "two words", "C": "", "D": " x  y ", "N": "6"}


def by_bash(raw: str) -> list[str]:
    """Return the words that bash makes of a raw word. It has no command, no file and no glob in it."""
    script = f"set -f; IFS=$' \\t\\n'; words=({raw}); printf '%s\\0' \"${{#words[@]}}\" \"${{words[@]}}\""
    done = subprocess.run(["bash", "-c", script], env=VARIABLES, capture_output=True, text=True, check=True)
    count, *words = done.stdout.split("\0")[:-1]
    return words[: int(count)]


def by_us(raw: str) -> list[str]:
    return Expander(dict(VARIABLES)).fields(raw)


WORDS = [
    *("a", "'a b'", '"a b"', "a'b c'd", 'a"b c"d', "\\$A", "'$A'", "a\\ b", "''", '""', "'it'\\''s'"),
    *(
        "$A",
        "${A}",
        '"$A"',
        "x$A",
        "${A}y",
        "$B",
        '"$B"',
        "x$B",
        "$B$A",
        "x${B}y",
        "$C",
        '"$C"',
        "x$C",
        "$D",
        "a$D",
        "${D}b",
    ),
    *('"$D"', "$B$D", "${A:-z}", "${C:-z}", "${C-z}", '"${C:-z z}"', "$((N * 2 + 1))", "$((N/4))", '"$((N%4))"'),
    *('"a\\"b"', '"a\\\\b"', '"a\\b"', '"\\$A"', "$A:6000", "--x=$B", '--x="$B"', "a$", '"$"', "$D$D"),
]


@pytest.mark.parametrize("raw", WORDS)
def test_words_are_expanded_as_by_bash(raw: str) -> None:
    assert by_us(raw) == by_bash(raw)


PIECES = st.sampled_from(
    ["a", "'b c'", '"d e"', "${A}", "${B}", '"$B"', "${C}", "${D}", '"x $D"', "\\ ", "''", "$((N*2))", "-", "="]
)


@fuzzed(st.lists(PIECES, min_size=1, max_size=6).map("".join))
def test_any_word_of_known_pieces_is_expanded_as_by_bash(raw: str) -> None:
    assert by_us(raw) == by_bash(raw)


@pytest.mark.parametrize(
    "raw",
    ["$(date)", "`date`", "$UNKNOWN", "${A%x}", "${#A}", "$1", '"$@"', "$((N ** 2))", "$((X))", "${A[0]}", "=(a b)"],
)
def test_what_only_a_shell_knows_stays_as_it_is(raw: str) -> None:
    (word,) = by_us(raw)
    assert is_dynamic(word)
    assert source_of(word) == raw.strip('"')


def test_a_default_is_taken_for_a_variable_that_is_not_known() -> None:
    expander = Expander({})
    assert expander.fields("${MODEL:-'llama 3'}") == ["llama", "3"]
    assert expander.defaults == {"MODEL": "llama 3"}


def test_a_variable_that_holds_itself_again_and_again_stays_small() -> None:
    expander = Expander({"A": "x"})
    for _ in range(60):
        expander.variables["A"] = expander.value('"$A$A"')
    assert len(expander.variables["A"]) <= 50_000


SIGNS = st.sampled_from([*"aA $\"'`\\{}()*#@!:-=%", "${A", "${A:-", "$((", "))", "$(", "}"])


@fuzzed(st.lists(SIGNS, max_size=30).map("".join))
def test_any_word_is_expanded(text: str) -> None:
    for each in statements(text):
        for raw in each.words:
            Expander(dict(VARIABLES)).fields(raw)
            Expander({}).value(raw)

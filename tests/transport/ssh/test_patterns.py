"""Lists of patterns, as ssh matches them."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from tests.support import fuzzed
from torchfab.transport.ssh.patterns import matches


@pytest.mark.parametrize(
    ("patterns", "name", "expected"),
    [
        ("a", "a", True),
        ("a", "aa", False),
        ("a b", "b", True),
        ("A", "a", False),
        ("*", "", True),
        ("node?", "node1", True),
        ("node?", "node10", False),
        ("*.lab !bad.lab", "good.lab", True),
        ("*.lab !bad.lab", "bad.lab", False),
        ("!bad.lab *.lab", "bad.lab", False),
        ("!a", "b", False),
        ("[ab]", "a", False),
        ("a.b", "axb", False),
    ],
)
def test_patterns_match_as_in_openssh(patterns: str, name: str, expected: bool) -> None:
    assert matches(patterns.split(), name) is expected


@fuzzed(st.text(st.characters(exclude_characters="*?!")))
def test_text_without_wildcards_matches_itself_only(text: str) -> None:
    assert matches([text], text)
    assert not matches([text], f"{text}x")
    assert not matches(["*", f"!{text}"], text)
    assert matches([f"{text}*"], f"{text}\nx")

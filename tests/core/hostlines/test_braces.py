"""Brace expansion as in bash."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import require
from torchfab.core.hostlines.braces import expand

TEXTS = (
    *("node{1..3}", "node{01..03}", "node{9..11}", "node{3..1}", "n{1..9..4}", "rack{a..c}", "rack{C..A}"),
    *("n{1,3}", "n{1..2}-{a,b}", "n{1}", "n{}", "n", "n{,x}", "n{1..}", "n{5..1..2}", "{a,b}{1..2}"),
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_expanded_as_bash_does(text: str) -> None:
    shown = subprocess.run(
        [require("bash"), "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True
    )
    assert expand(text, 100) == shown.stdout.splitlines()


def test_what_is_more_than_the_limit_is_not_expanded() -> None:
    assert expand("n{1..10}", 10) is not None
    assert expand("n{1..11}", 10) is None
    assert expand("n{1..4}-{1..4}", 15) is None
    assert expand("n{1..999999999}", 1000) is None


@given(st.text("n{},.019aZ", max_size=20))
def test_any_text_is_expanded_to_its_own_characters(text: str) -> None:
    found = expand(text, 1000)
    assert found is None or (0 < len(found) <= 1000)

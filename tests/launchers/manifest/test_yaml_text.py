"""Objects as YAML: written text is read back unchanged, by us and by other readers."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile import UTF8
from tests.kube.kubelet import expand
from tests.support import fuzzed
from torchfab.launchers.manifest.yaml_text import escape, from_yaml, to_yaml

SIGNS = st.text(st.sampled_from("$()Ax {}"), max_size=12)


@fuzzed(SIGNS)
def test_the_kubelet_restores_escaped_text(text: str) -> None:
    assert expand(escape(text), {"A": "wrong", "x": "wrong"}) == text


@given(SIGNS)
def test_only_necessary_characters_are_escaped(text: str) -> None:
    if "$$" not in text and "$(" not in text:
        assert escape(text) == text


@given(st.recursive(
    st.one_of(st.text(st.characters(codec="utf-8")), st.integers(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)),
    max_leaves=8,
).map(lambda value: {"kind": "X", "value": value}))  # fmt: skip
def test_written_objects_are_read_back_unchanged(item: dict[str, Any]) -> None:
    assert from_yaml(to_yaml([item, item], ["a comment"])) == [item, item]
    assert list(yaml.safe_load_all(to_yaml([item]))) == [item]


@pytest.mark.parametrize("name", sorted(UTF8))
def test_hostile_texts_are_read_back_unchanged(name: str) -> None:
    assert from_yaml(to_yaml([{"a": [UTF8[name]], UTF8[name]: 1}])) == [{"a": [UTF8[name]], UTF8[name]: 1}]


def test_a_comment_cannot_end_early() -> None:
    text = to_yaml([{"a": "b"}], ["one\n---\nkind: Evil", "\r\x85two\u2028kind: Evil"])
    assert from_yaml(text) == [{"a": "b"}]


def test_programs_are_written_line_by_line() -> None:
    assert "a: |\n  one: 'x'\n  two" in to_yaml([{"a": "one: 'x'\ntwo\n"}])

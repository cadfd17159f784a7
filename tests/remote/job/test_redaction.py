"""Secrets that are printed are hidden, whatever stands around them, and nothing else is."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import fuzzed
from torchfab.remote.job import redaction

KEY, OTHER_KEY = "ab" * 32, "cd" * 32
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
VALUES = st.one_of(st.from_regex(r"[A-Za-z0-9_-]{8,40}", fullmatch=True), st.text(min_size=8, max_size=40))


def hide(secrets: dict[str, str], value: Any, key: str = KEY) -> Any:
    """Give a value as it is answered, of a job with these secrets."""
    return redaction.make_redactor(redaction.digests(secrets, KEY), key)(value)


def pieces(value: str) -> list[str]:
    return [line.strip() for line in value.split("\n") if len(line.strip().encode()) >= redaction.SHORTEST]


@fuzzed(TEXTS, VALUES.filter(lambda value: value == value.strip() and value.isprintable()), TEXTS)
def test_a_secret_is_hidden_wherever_it_stands(before: str, value: str, after: str) -> None:
    shown = hide({"TOKEN": value}, f"{before}{value}{after}")
    assert value not in shown or value in f"{before}<TOKEN>{after}"
    assert "<TOKEN>" in shown


@fuzzed(st.lists(st.one_of(TEXTS, VALUES), max_size=6), st.dictionaries(st.sampled_from("ABC"), VALUES, min_size=1))
def test_no_piece_of_any_secret_is_left(words: list[str], secrets: dict[str, str]) -> None:
    text = " ".join([*words, *secrets.values()]).replace("\n", " ")
    shown = hide(secrets, text)
    for value in secrets.values():
        for piece in pieces(value):
            if (
                piece.isascii()
                and piece.isprintable()
                and "<" not in piece
                and ">" not in piece
                and piece not in "<A><B><C>"
            ):
                assert piece not in shown


@given(TEXTS)
def test_a_text_without_secrets_is_left_alone(text: str) -> None:
    assert hide({"TOKEN": "a-secret-that-is-not-there"}, text) == text


def test_texts_are_found_in_everything_that_is_answered_but_not_in_names() -> None:
    value = "hf_0123456789"
    answer = {"lines": [[0, 1.5, f"token={value}"], ["agent", 2, "none"]], "offsets": {f"/x/{value}": 3}, "ok": True}
    shown = hide({"HF_TOKEN": value}, answer)
    assert shown["lines"] == [[0, 1.5, "token=<HF_TOKEN>"], ["agent", 2, "none"]]
    assert shown["offsets"] == {f"/x/{value}": 3}
    assert shown["ok"] is True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abcd1234efgh", "Authorization: Bearer <T>"),
        ("{'T': 'abcd1234efgh'}", "{'T': '<T>'}"),
        ("xabcd1234efghx abcd1234efgh", "x<T>x <T>"),
        ("\x1b[31mabcd1234efgh\x1b[0m", "\x1b[31m<T>\x1b[0m"),
        ("abcd1234efg", "abcd1234efg"),
    ],
)
def test_a_token_is_its_name_in_the_text(text: str, expected: str) -> None:
    assert hide({"T": "abcd1234efgh"}, text) == expected


def test_of_a_key_with_several_lines_each_is_hidden() -> None:
    shown = hide({"PEM": "-----BEGIN-----\nMIIEowIBAAKC\nshort\n"}, "MIIEowIBAAKC short")
    assert shown == "<PEM> short"


def test_of_two_secrets_the_longer_is_hidden_first() -> None:
    assert hide({"A": "12345678", "B": "1234567890"}, "1234567890 12345678") == "<B> <A>"


def test_short_secrets_leave_no_digest(tmp_path: Path) -> None:
    redaction.write(str(tmp_path), {"PIN": "1234567"}, KEY)
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_tells_neither_the_secret_nor_is_of_use_without_the_key(tmp_path: Path) -> None:
    value = "abcd1234efgh"
    redaction.write(str(tmp_path), {"T": value}, KEY)
    path = tmp_path / redaction.FILE
    assert value not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text())[0][:3] == ["T", len(value), 0]
    wrong = redaction.load_redactor(str(tmp_path), OTHER_KEY)
    assert wrong is not None
    assert wrong(value) == value


def test_equal_secrets_of_two_jobs_have_different_digests(tmp_path: Path) -> None:
    for name, key in (("a", KEY), ("b", OTHER_KEY)):
        (tmp_path / name).mkdir()
        redaction.write(str(tmp_path / name), {"T": "abcd1234efgh"}, key)
    assert (tmp_path / "a" / redaction.FILE).read_text() != (tmp_path / "b" / redaction.FILE).read_text()

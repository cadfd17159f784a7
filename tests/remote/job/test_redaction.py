"""Printed secrets are redacted, whatever the text around them, and nothing else is."""

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
    """Return a value as it is sent for a job with these secrets."""
    return redaction.make_redactor(redaction.digests(secrets, KEY), key)(value)


def pieces(value: str) -> list[str]:
    return [line.strip() for line in value.split("\n") if len(line.strip().encode()) >= redaction.SHORTEST]


@fuzzed(TEXTS, VALUES.filter(lambda value: value == value.strip() and value.isprintable()), TEXTS)
def test_a_secret_is_redacted_anywhere_in_a_text(before: str, value: str, after: str) -> None:
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
def test_a_text_without_secrets_is_unchanged(text: str) -> None:
    assert hide({"TOKEN": "a-secret-that-is-not-there"}, text) == text


def test_all_values_of_an_answer_are_redacted_but_not_its_keys() -> None:
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
def test_a_token_is_replaced_by_its_name(text: str, expected: str) -> None:
    assert hide({"T": "abcd1234efgh"}, text) == expected


def test_each_line_of_a_multiline_key_is_redacted() -> None:
    shown = hide({"PEM": "-----BEGIN-----\nMIIEowIBAAKC\nshort\n"}, "MIIEowIBAAKC short")
    assert shown == "<PEM> short"


def test_the_longer_of_two_secrets_is_redacted_first() -> None:
    assert hide({"A": "12345678", "B": "1234567890"}, "1234567890 12345678") == "<B> <A>"


def test_short_secrets_leave_no_digest(tmp_path: Path) -> None:
    redaction.write(str(tmp_path), {"PIN": "1234567"}, KEY)
    assert list(tmp_path.iterdir()) == []


def test_the_digest_file_reveals_nothing_and_needs_the_key(tmp_path: Path) -> None:
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

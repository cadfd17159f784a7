"""Hiding secrets in the logs of pods: in any blocks, with nothing else changed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchfab.runtimes.kubernetes import redaction

KEY, SECRET = "ab" * 32, "hf_Ab3dEf6hIj"


def redact(key: str = KEY) -> redaction.Redact | None:
    job: dict[str, Any] = {"kind": "Job", "spec": {"template": {"metadata": {}}}}
    redaction.with_digests(job, {"HF_TOKEN": SECRET}, KEY)
    return redaction.redactor([job["spec"]["template"]], key)


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return (data[start:end] for start, end in pairwise(edges))


@given(st.binary(max_size=200), st.binary(max_size=200), st.lists(st.integers(0, 10_000), max_size=9))
def test_secret_is_redacted_wherever_the_blocks_are_cut(before: bytes, after: bytes, places: list[int]) -> None:
    data = before + b"\n= " + SECRET.encode() + b" =\n" + after
    shown = b"".join(redaction.redact_blocks(cut(data, places), redact()))
    assert shown == before + b"\n= <HF_TOKEN> =\n" + after


def test_jobset_pods_carry_the_digests() -> None:
    pod: dict[str, Any] = {"metadata": {"labels": {}}}
    part = {"template": {"spec": {"template": pod}}}
    redaction.with_digests({"kind": "JobSet", "spec": {"replicatedJobs": [part]}}, {"HF_TOKEN": SECRET}, KEY)
    assert redaction.ANNOTATION in pod["metadata"]["annotations"]
    assert SECRET not in pod["metadata"]["annotations"][redaction.ANNOTATION]


def test_lines_are_passed_on_as_soon_as_complete() -> None:
    assert list(redaction.redact_blocks(iter([b"a", b"b\nc", b"\n", b"d"]), redact())) == [b"ab\n", b"c\n", b"d"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", '[["X", 1, 0, "zz"]]'])
def test_foreign_annotation_redacts_nothing(text: str) -> None:
    assert redaction.redactor([{"metadata": {"annotations": {redaction.ANNOTATION: text}}}], KEY) is None


def test_no_redaction_without_key_or_annotation() -> None:
    assert redact("") is None
    assert redaction.redactor([{"metadata": {}}], KEY) is None

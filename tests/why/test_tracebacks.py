"""Tracebacks found in logs, and their fingerprints."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import strategies as st

from tests.support import fuzzed
from torchfab.why import tracebacks

PLAIN = """\
Traceback (most recent call last):
  File "/a/train.py", line 10, in <module>
    main()
  File "/a/train.py", line 7, in main
    raise ValueError("bad batch 17")
ValueError: bad batch 17
"""


def printed_by(code: str) -> str:
    """Return what Python prints for an uncaught exception."""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr


def last_traceback(text: str) -> tracebacks.Traceback:
    found = tracebacks.last_traceback(text)
    assert found
    return found


def test_last_traceback_of_a_log_is_complete() -> None:
    first = PLAIN.replace("ValueError", "KeyError")
    found = last_traceback(f"step 1\n{first}retrying\nstep 2\n{PLAIN}W1121 10:00:00.000 torchrun says more\n")
    assert found.text == PLAIN.rstrip("\n")
    assert found.exception == "ValueError: bad batch 17"
    assert found.frames == (("train.py", "<module>"), ("train.py", "main"))


def test_rank_prefix_of_torch_is_removed() -> None:
    prefixed = "".join(f"[rank12]: {line}\n" for line in PLAIN.splitlines())
    assert last_traceback(prefixed) == last_traceback(PLAIN)


def test_chained_exceptions_are_kept_and_named_by_the_last() -> None:
    code = "def f():\n try: 1/0\n except Exception as e: raise ValueError('bad') from e\nf()"
    found = last_traceback(printed_by(code))
    assert found.exception == "ValueError: bad"
    assert "ZeroDivisionError: division by zero" in found.text
    assert found.text.count("Traceback") == 2


def test_exception_of_a_data_loader_worker_is_used() -> None:
    inner = PLAIN.replace("Traceback", "Original Traceback")
    outer = PLAIN.replace(
        "ValueError: bad batch 17\n", "ValueError: Caught ValueError in DataLoader worker process 0.\n"
    )
    assert last_traceback(outer + inner).exception == "ValueError: bad batch 17"


def test_syntax_error_is_found_without_a_traceback_line() -> None:
    found = last_traceback("  File \"/a/train.py\", line 3\n    foo(\n       ^\nSyntaxError: '(' was never closed\n")
    assert found.exception == "SyntaxError: '(' was never closed"
    assert 'File "/a/train.py", line 3' in found.text


def test_multiline_message_ends_before_cpp_frames() -> None:
    text = PLAIN + "more of it\nException raised from x at y.cpp:1\nframe #0: foo\n"
    assert last_traceback(text).exception == "ValueError: bad batch 17\nmore of it"


@pytest.mark.parametrize(
    "text", ["", "Traceback (most recent call last):", PLAIN.rpartition("ValueError")[0], "no: colon"]
)
def test_incomplete_traceback_is_not_returned(text: str) -> None:
    assert tracebacks.last_traceback(text) is None


def test_fingerprint_ignores_numbers_addresses_and_folders() -> None:
    other = PLAIN.replace("17", "9 at 0x7f12ab").replace("/a/", "/somewhere/else/").replace("line 7", "line 8")
    same = PLAIN.replace("17", "234 at 0x1")
    assert last_traceback(other).fingerprint == last_traceback(same).fingerprint
    assert last_traceback(PLAIN).fingerprint != last_traceback(PLAIN.replace("ValueError", "KeyError")).fingerprint
    assert last_traceback(PLAIN).fingerprint != last_traceback(PLAIN.replace("in main", "in evaluate")).fingerprint


@fuzzed(st.text(), st.text())
def test_traceback_is_found_in_any_surrounding_text(before: str, after: str) -> None:
    tracebacks.last_traceback(before)
    found = tracebacks.last_traceback(f"{before}\n{PLAIN}\n{after}")
    assert found is not None
    assert tracebacks.last_traceback(f"{before}\n{PLAIN}") is not None

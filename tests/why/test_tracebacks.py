"""Tracebacks found in logs, and whether two are the same failure."""

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
    """Return what Python itself prints of an exception that nobody catches."""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr


def last_traceback(text: str) -> tracebacks.Traceback:
    found = tracebacks.last_traceback(text)
    assert found
    return found


def test_the_last_traceback_of_a_log_is_found_whole() -> None:
    first = PLAIN.replace("ValueError", "KeyError")
    found = last_traceback(f"step 1\n{first}retrying\nstep 2\n{PLAIN}W1121 10:00:00.000 torchrun says more\n")
    assert found.text == PLAIN.rstrip("\n")
    assert found.exception == "ValueError: bad batch 17"
    assert found.frames == (("train.py", "<module>"), ("train.py", "main"))


def test_the_prefix_that_torch_puts_before_the_lines_of_a_rank_is_taken_off() -> None:
    prefixed = "".join(f"[rank12]: {line}\n" for line in PLAIN.splitlines())
    assert last_traceback(prefixed) == last_traceback(PLAIN)


def test_a_chain_of_exceptions_is_shown_whole_and_named_by_its_last() -> None:
    code = "def f():\n try: 1/0\n except Exception as e: raise ValueError('bad') from e\nf()"
    found = last_traceback(printed_by(code))
    assert found.exception == "ValueError: bad"
    assert "ZeroDivisionError: division by zero" in found.text
    assert found.text.count("Traceback") == 2


def test_the_exception_of_a_data_loader_s_worker_is_what_counts() -> None:
    inner = PLAIN.replace("Traceback", "Original Traceback")
    outer = PLAIN.replace(
        "ValueError: bad batch 17\n", "ValueError: Caught ValueError in DataLoader worker process 0.\n"
    )
    assert last_traceback(outer + inner).exception == "ValueError: bad batch 17"


def test_a_script_that_cannot_be_compiled_has_a_traceback_too() -> None:
    found = last_traceback("  File \"/a/train.py\", line 3\n    foo(\n       ^\nSyntaxError: '(' was never closed\n")
    assert found.exception == "SyntaxError: '(' was never closed"
    assert 'File "/a/train.py", line 3' in found.text


def test_a_message_of_several_lines_is_kept_and_ends_before_the_frames_of_torch() -> None:
    text = PLAIN + "more of it\nException raised from x at y.cpp:1\nframe #0: foo\n"
    assert last_traceback(text).exception == "ValueError: bad batch 17\nmore of it"


@pytest.mark.parametrize(
    "text", ["", "Traceback (most recent call last):", PLAIN.rpartition("ValueError")[0], "no: colon"]
)
def test_what_is_cut_short_or_none_is_none(text: str) -> None:
    assert tracebacks.last_traceback(text) is None


def test_the_same_failure_has_the_same_fingerprint_with_other_numbers_addresses_and_folders() -> None:
    other = PLAIN.replace("17", "9 at 0x7f12ab").replace("/a/", "/somewhere/else/").replace("line 7", "line 8")
    same = PLAIN.replace("17", "234 at 0x1")
    assert last_traceback(other).fingerprint == last_traceback(same).fingerprint
    assert last_traceback(PLAIN).fingerprint != last_traceback(PLAIN.replace("ValueError", "KeyError")).fingerprint
    assert last_traceback(PLAIN).fingerprint != last_traceback(PLAIN.replace("in main", "in evaluate")).fingerprint


@fuzzed(st.text(), st.text())
def test_no_text_breaks_the_search_and_what_is_around_does_not_hide_a_traceback(before: str, after: str) -> None:
    tracebacks.last_traceback(before)
    found = tracebacks.last_traceback(f"{before}\n{PLAIN}\n{after}")
    assert found is not None
    assert tracebacks.last_traceback(f"{before}\n{PLAIN}") is not None

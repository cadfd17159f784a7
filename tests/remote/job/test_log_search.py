"""What a node finds in whole log files, and what it sends of them."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.support import fuzzed
from torchfab.remote import job_files
from torchfab.remote.job import log_files, log_search
from torchfab.why.signature_table import SIGNATURES

TRACEBACK = """\
Traceback (most recent call last):
  File "/a/train.py", line 7, in main
    loss = step(batch)
KeyError: 'img'
"""
STEP = "2026-01-02 10:00:00 step 17 loss 2.31 grad_norm 0.31 tokens/s 10234\n"
MIB = 1024 * 1024


def searched(path: Path, max_bytes: int = 32 * 1024, deadline_s: float = 60.0) -> dict[str, Any]:
    log = log_files.LogFile(str(path.parent), path.name)
    budget = log_search.Budget(max_bytes, time.monotonic() + deadline_s)
    return log_search.search(log, log_files.WriteTimes(str(path.parent)), budget)


def text_of(found: dict[str, Any]) -> str:
    return "".join(part["text"] for part in found["parts"])


@pytest.mark.parametrize("before", [0, 3 * MIB, 8 * MIB - 20, 8 * MIB, 20 * MIB])
@pytest.mark.parametrize("after", [0, 17 * 1024, 30 * MIB])
def test_traceback_is_found_wherever_it_stands(tmp_path: Path, before: int, after: int) -> None:
    path = tmp_path / "stderr.log"
    fill = (STEP * (before // len(STEP) + 1))[: max(0, before - 1)] + "\n" if before else ""
    path.write_text(fill + TRACEBACK + "frame #0: c10::Error (0x7f in libc10.so)\n" * (after // 41))
    found = searched(path)
    assert TRACEBACK in text_of(found)
    assert len(text_of(found)) <= 33 * 1024
    number = fill.count("\n") + 1
    lines = [line for part in found["parts"] for line in enumerate(part["text"].splitlines(), part["line"])]
    if path.stat().st_size <= 64 * MIB:
        assert (number, TRACEBACK.splitlines()[0]) in lines


def test_first_and_last_of_many_tracebacks_are_sent(tmp_path: Path) -> None:
    path = tmp_path / "stderr.log"
    path.write_text("".join(TRACEBACK.replace("img", f"number {at}") + STEP * 200 for at in range(500)))
    text = text_of(searched(path, 64 * 1024))
    assert "'number 0'" in text
    assert "'number 499'" in text


def test_messages_without_traceback_are_found_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "stderr.log"
    path.write_text(STEP * 1000 + "node:1:2 [0] NCCL WARN Cuda failure 'out of memory'\n" + "frame #1: x\n" * 20_000)
    assert "NCCL WARN Cuda failure 'out of memory'" in text_of(searched(path))


def test_lines_carry_the_time_when_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "stderr.log"
    path.write_text("one\ntwo\nthree\n")
    (tmp_path / job_files.TIMELINE).write_text("100.00 4 stderr.log\n105.00 8 stderr.log\n109.00 14 stderr.log\n")
    found = searched(path)
    assert [(part["time"], part["text"], part["line"]) for part in found["parts"]][:2] == [
        *((100.0, "one\n", 1), (105.0, "two\n", 2)),
    ]
    assert not any(part["gap"] for part in found["parts"])


def test_what_a_deadline_leaves_out_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "stderr.log"
    path.write_text(TRACEBACK + STEP * (40 * MIB // len(STEP)))
    found = searched(path, deadline_s=-1.0)
    assert (found["unsearched_from"], found["unsearched"]) == (MIB, path.stat().st_size - 2 * MIB)
    assert text_of(found).endswith(STEP)
    assert TRACEBACK in text_of(found)  # the begin of the file is always searched


@pytest.mark.parametrize("count", [1, 11, 12, 13, 16, 17, 60])
@pytest.mark.parametrize("every", [300, 3 * MIB // 2])
@pytest.mark.parametrize("ends", [256 * MIB, 2 * MIB])
def test_the_last_and_the_first_heads_are_found_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, every: int, ends: int
) -> None:
    monkeypatch.setattr(log_search, "_END_BYTES", ends)
    monkeypatch.setattr(log_search, "_BEGIN_BYTES", ends // 2)
    path = tmp_path / "stderr.log"
    count = min(count, 20) if every > MIB else count
    pieces = [TRACEBACK.replace("img", f"number {at}") + STEP * (every // len(STEP)) for at in range(count)]
    path.write_text("".join(pieces))
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        heads, unsearched = log_search._find_heads(file, size, log_search.Budget(0, time.monotonic() + 60))
    offsets = [sum(map(len, pieces[:at])) for at in range(count)]
    assert unsearched == (0, 0)
    assert heads[:12] == offsets[::-1][:12]
    assert heads[12:] == offsets[: max(0, count - 12)][:4][::-1]


def test_json_heads_are_found_where_lines_are_json(tmp_path: Path) -> None:
    path = tmp_path / "stderr.log"
    line = '{"event": "failed", "exception": [{"exc_type": "KeyError", "exc_value": "img", "frames": []}]}\n'
    path.write_text('{"event": "step", "loss": 2.3}\n' * 40_000 + line + '{"event": "step"}\n' * 100_000)
    assert line in text_of(searched(path))


@fuzzed(st.lists(st.one_of(st.just(TRACEBACK.encode()), st.binary(max_size=40)), max_size=60), st.integers(600, 4000))
def test_any_bytes_are_searched_within_the_size(pieces: list[bytes], max_bytes: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stderr.log"
        path.write_bytes(b"\n".join(pieces))
        found = searched(path, max_bytes)
        text = text_of(found)
        assert len(text.encode(errors="replace")) <= 3 * max_bytes + 3 * log_search._MIN_TAIL_BYTES
        whole = path.read_bytes().decode(errors="replace")
        assert all(line in whole for line in text.splitlines() if line.isascii())


@pytest.mark.parametrize("line_bytes", [60, 90_000])
@pytest.mark.parametrize("dump_mib", [0, 3])
def test_last_lines_before_a_dump_of_frames_are_sent(tmp_path: Path, line_bytes: int, dump_mib: int) -> None:
    path = tmp_path / "stderr.log"
    said = "".join(f"reason {number} {'x' * line_bytes}\n" for number in range(12))
    frame = "frame #12: c10::detail::torchCheck(char const*) + 0x64 (0x7f2b4c in /opt/conda/lib/libc10.so)\n"
    path.write_text(STEP * 20_000 + said + frame * (dump_mib * MIB // len(frame)))
    text = text_of(searched(path))
    assert "reason 11 x" in text
    assert all(f"reason {number} x" in text for number in range(12)) or line_bytes > 1000


def test_each_signature_is_marked_for_the_search_of_a_node() -> None:
    marks = [*log_search.MARKS, *log_search.TRACEBACK_HEADS]
    missing = [each.example for each in SIGNATURES if not any(mark in each.example.encode() for mark in marks)]
    assert missing == []


def test_message_is_found_in_the_middle_of_100_mb(tmp_path: Path) -> None:
    path = tmp_path / "stderr.log"
    half = STEP * (50 * MIB // len(STEP))
    message = "Abort(1091215) on node 1 (rank 1 in comm 0): Fatal error in PMPI_Init: Other MPI error, error stack:\n"
    path.write_text(half + message + half)
    assert message in text_of(searched(path))


def test_no_mark_has_a_character_that_is_left_out_when_lines_are_compared() -> None:
    assert [mark for mark in log_search.MARKS if set(mark) & set(log_search.VARIABLE)] == []


LINES = st.one_of(
    st.builds("step {} loss {}".format, st.integers(0, 10**6), st.floats(0, 9)),
    st.builds(
        "{}{}7".format, st.text("ab# ", max_size=5), st.sampled_from([each.decode() for each in log_search.MARKS])
    ),
    st.text("abcde 0123", max_size=30),
)


@fuzzed(st.lists(LINES, max_size=60), st.integers(1, 4))
def test_marks_are_found_as_a_search_of_all_lines_finds_them(lines: list[str], copies: int) -> None:
    content = "\n".join(lines * copies).encode()
    wanted: set[int] = set()
    for mark in log_search.MARKS:
        wanted.update([match.start() for match in re.finditer(b"(?=%s)" % re.escape(mark), content)][-2:])
    found = log_search._find_marks(io.BytesIO(content), len(content), log_search.Budget(1024, time.monotonic() + 60))
    assert found == sorted(wanted, reverse=True)

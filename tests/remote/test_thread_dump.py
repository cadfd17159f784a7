"""The stacks that Python's faulthandler writes, parsed."""

from __future__ import annotations

import faulthandler
import threading
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.support import fuzzed
from torchfab.remote import thread_dump

NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=12)


FRAMES = st.lists(st.tuples(NAMES, NAMES, st.integers(1, 99999)), max_size=5)


def written(threads: Sequence[Sequence[tuple[str, str, int]]]) -> list[str]:
    """Return the lines that faulthandler writes for these threads, the main thread first."""
    lines = []
    for index in reversed(range(len(threads))):
        lines.append(f"{'Current thread' if index == 0 else 'Thread'} 0x{index + 1:016x} (most recent call first):")
        lines += [f'  File "{path}", line {line} in {name}' for name, path, line in threads[index]]
        lines.append("")
    return lines


@given(st.lists(FRAMES, min_size=1, max_size=4))
def test_any_dump_of_faulthandler_is_parsed(threads: list[list[tuple[str, str, int]]]) -> None:
    found = thread_dump.parse("\n".join(written(threads)))
    assert [[tuple(frame) for frame in each["frames"]] for each in found] == threads


@fuzzed(st.lists(FRAMES, min_size=1, max_size=3), st.lists(st.tuples(st.integers(0, 30), NAMES), max_size=5))
def test_lines_of_the_training_inside_a_dump_are_skipped(
    threads: list[list[tuple[str, str, int]]], noise: list[tuple[int, str]]
) -> None:
    lines = written(threads)
    for place, text in noise:
        lines.insert(place, f"step {text}")
    found = thread_dump.parse("\n".join(lines))
    assert [[tuple(frame) for frame in each["frames"]] for each in found] == threads


@fuzzed(st.text())
def test_the_parser_accepts_any_text(text: str) -> None:
    assert isinstance(thread_dump.parse(text), list)


def test_of_two_dumps_the_first_is_parsed() -> None:
    lines = written([[("f", "/a.py", 1)]]) + written([[("g", "/a.py", 2)]])
    assert [each["frames"] for each in thread_dump.parse("\n".join(lines))] == [[["f", "/a.py", 1]]]


def test_a_dump_of_the_real_faulthandler_is_parsed(tmp_path: Path) -> None:
    release = threading.Event()
    helper = threading.Thread(target=release.wait)
    helper.start()
    with (tmp_path / "dump").open("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
    release.set()
    helper.join()
    found = thread_dump.parse((tmp_path / "dump").read_text())
    assert found[0]["frames"][0][0] == "test_a_dump_of_the_real_faulthandler_is_parsed"
    others = [[frame[0] for frame in each["frames"]] for each in found[1:]]  # those of the test's own runner, too
    assert any("wait" in names for names in others)

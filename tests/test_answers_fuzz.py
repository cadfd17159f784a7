"""A node that answers rubbish, or worse: bounded memory, a clean error, nothing that steers a terminal."""

from __future__ import annotations

import copy
import json
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchfab import shapes, status
from torchfab.asking import ask_all
from torchfab.errors import HostError
from torchfab.job import Node
from torchfab.session import MOST_ANSWER_BYTES, Session
from torchfab.settings import Settings
from torchfab.ssh import pipes

NODE = Node(0, "node1")
RANK = {"rank": 0, "local_rank": 0, "world_size": 2, "attempt": 0, "pid": 7, "start_time": 1, "started": 5.0}
PROCESS = {
    "name": "rank-0",
    "state": "running",
    "reason": "",
    "pid": 7,
    "started": 5.0,
    "ended": None,
    "code": None,
    "signal": None,
    "warned": None,
    "ranks": [{**RANK, "ended": None, "code": None}],
    "reported": [],
    "last_line": {"time": 6.0, "text": "step 1", "label": 0},
}
STATUS = {"processes": [PROCESS], "now": 10.0, "exists": True, "stop_asked": None}
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)),
    max_leaves=8,
)


class Spoken:
    """A pipe from which bytes come that were said before."""

    def __init__(self, data: bytes) -> None:
        self.chunks = [data[start : start + 1 << 16] for start in range(0, len(data), 1 << 16)]

    def write(self, data: bytes) -> None:
        """Take what nobody reads."""

    def read(self, timeout_s: float) -> bytes | None:
        return self.chunks.pop(0) if self.chunks else b""

    def obituary(self) -> tuple[int | None, str]:
        return 0, "\x1b]0;gone\x07 its last words"

    def close(self) -> None:
        """Close nothing."""


def frame(value: Any) -> bytes:
    data = json.dumps(value).encode()
    return b"\x1e%d\n%s" % (len(data), data)


def ask(data: bytes, op: str = "status") -> Mapping[str, Any]:
    return Session(NODE, Spoken(data)).ask({"op": op}, 5)


@given(st.one_of(st.binary(max_size=300), JSON.map(frame), JSON.map(lambda value: b"\x1e9\n" + frame(value))))
def test_rubbish_is_a_clean_error(data: bytes) -> None:
    with pytest.raises(HostError) as caught:
        ask(data)
    assert "\x1b" not in str(caught.value)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Give the ways to all parts of a value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, part in parts for found in places(part, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], part: Any) -> Any:
    """Give a value with another part."""
    if not path:
        return part
    made = copy.deepcopy(value)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = part
    return made


@given(st.sampled_from(places(STATUS)), JSON)
def test_a_status_with_any_part_exchanged_is_refused_or_can_be_shown(path: tuple[Any, ...], part: Any) -> None:
    try:
        answer = ask(frame({**changed({"it": STATUS}, ("it", *path), part)["it"], "of": 1}))
    except (HostError, TypeError):  # TypeError: the whole of it was exchanged, here in the test
        return
    job = status.JobStatus((status.from_answer(NODE, answer, 9, 10),), 1)
    text = json.dumps([status.table(job), status.as_json("x", job)])
    assert "\\u001b" not in text


def test_a_true_status_fits() -> None:
    assert shapes.fits(STATUS, "status")


@given(st.text())
def test_what_is_taken_in_steers_no_terminal(text: str) -> None:
    shown = shapes.cleaned({"a": [text]})["a"][0]
    assert not [sign for sign in shown if (ord(sign) < 32 and sign not in "\t\n") or 127 <= ord(sign) < 160]


HUGE = MOST_ANSWER_BYTES + 1
CASES = {
    "more than is taken": (b"\x1e%d\n" % HUGE, "is more than torchfab takes"),
    "nested without end": (b"\x1e50000\n" + b"[" * 50_000, "not torchfab's program"),
    "another's": (frame({"hello": 1, "of": 1}), "what answers there is not torchfab's program"),
    "problems that are none": (frame({"problems": [1], "of": 1}), "not torchfab's program"),
    "last words that steer": (b"", "its last words"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said(case: str) -> None:
    data, told = CASES[case]
    with pytest.raises(HostError) as caught:
        ask(data)
    assert told in str(caught.value)
    assert "\x1b" not in str(caught.value)


# ---- with a real program at the other end

NO_ANSWER, SOMEBODY_ELSE = "gave no answer within|took nothing within", "not torchfab's program"
READ = "import sys\nsys.stdin.buffer.read(int(sys.argv[-1]))\n"
ENDLESS = "while True: print('x' * 65536, file=sys.{}, flush=True)"
PROGRAMS = {
    "endless": (READ + ENDLESS.format("stdout"), NO_ANSWER),
    "an endless answer": (f"{READ}print('\\x1e60000')\n" + ENDLESS.format("stdout"), SOMEBODY_ELSE),
    "endless complaints": (
        f"{READ}import os\nos.close(1)\n" + ENDLESS.format("stderr"),
        "(ended|was killed) there",
    ),
    "that reads nothing": ("import time\ntime.sleep(99)", NO_ANSWER),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_a_real_program_that_means_harm_is_an_error_in_time_and_bounded(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, told = PROGRAMS[case]
    program = tmp_path / "python3"
    program.write_text(f"#!{sys.executable} -IS\n{text}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(pipes, "_END_S", 0.5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, answer = next(iter(ask_all([Node(0, "localhost")], Settings(), {"op": "status"}, 1.0)))
    assert isinstance(answer, HostError)
    assert re.search(told, str(answer)), answer
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB

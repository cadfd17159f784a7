"""Garbage and hostile answers: bounded memory, a clear error, no control characters in output."""

from __future__ import annotations

import json
import re
import resource
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from tests.support import fuzzed
from tests.transport.requests import without_values
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError
from torchfab.core.specs import Node
from torchfab.transport import messages
from torchfab.transport.messages.job import LogsFrame, LogsRequest, StatusRequest
from torchfab.transport.session import MOST_ANSWER_BYTES, Session
from torchfab.transport.session_pool import request_all
from torchfab.transport.ssh import channels

NODE = Node(0, "node1")
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.sampled_from([10**400, -1]), st.floats(), st.text(max_size=20)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)),
    max_leaves=8,
)


class RecordedChannel:
    """A channel that returns recorded bytes."""

    def __init__(self, data: bytes) -> None:
        self.chunks = [data[start : start + 1 << 16] for start in range(0, len(data), 1 << 16)]

    def write(self, data: bytes) -> None:
        """Ignore the bytes."""

    def read(self, timeout_s: float) -> bytes | None:
        return self.chunks.pop(0) if self.chunks else b""

    def exit_status(self) -> tuple[int | None, str]:
        return 0, "\x1b]0;gone\x07 its last words"

    def close(self) -> None:
        """Do nothing."""


def frame(value: Any) -> bytes:
    data = json.dumps(value).encode()
    return b"\x1e%d\n%s" % (len(data), data)


def request_status(data: bytes) -> Any:
    return Session(NODE, RecordedChannel(data)).request(without_values(StatusRequest), 5)


@fuzzed(st.one_of(st.binary(max_size=300), JSON.map(frame), JSON.map(lambda value: b"\x1e9\n" + frame(value))))
def test_garbage_is_an_error_without_control_characters(data: bytes) -> None:
    with pytest.raises(HostError) as caught:
        request_status(data)
    assert "\x1b" not in str(caught.value)


@fuzzed(st.text())
def test_cleaned_text_has_no_control_characters(text: str) -> None:
    shown = messages.cleaned({"a": [text]})["a"][0]
    assert not [sign for sign in shown if (ord(sign) < 32 and sign not in "\t\n") or 127 <= ord(sign) < 160]


HUGE = MOST_ANSWER_BYTES + 1
CASES = {
    "an answer over the limit": (b"\x1e%d\n" % HUGE, "is over the limit of"),
    "nested without end": (b"\x1e50000\n" + b"[" * 50_000, "not from torchfab's program"),
    "the answer of another program": (frame({"hello": 1, "of": 1}), "the output is not from torchfab's program"),
    "an answer to no request": (frame({}), "the output is not from torchfab's program"),
    "malformed problems": (frame({"problems": [1], "of": 1}), "not from torchfab's program"),
    "control characters in stderr": (b"", "its last words"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_error_names_the_problem(case: str) -> None:
    data, message = CASES[case]
    with pytest.raises(HostError) as caught:
        request_status(data)
    assert message in str(caught.value)
    assert "\x1b" not in str(caught.value)


# ---- with a real program at the other end

NO_ANSWER, ANOTHER_PROGRAM = "gave no answer within|read nothing within", "not from torchfab's program"
READ = "import sys\nsys.stdin.buffer.read(int(sys.argv[-1]))\n"
ENDLESS = "while True: print('x' * 65536, file=sys.{}, flush=True)"
PROGRAMS = {
    "endless output": (READ + ENDLESS.format("stdout"), NO_ANSWER),
    "an endless answer": (f"{READ}print('\\x1e60000')\n" + ENDLESS.format("stdout"), ANOTHER_PROGRAM),
    "endless stderr": (
        f"{READ}import os\nos.close(1)\n" + ENDLESS.format("stderr"),
        "(ended|was killed) there",
    ),
    "no reading": ("import time\ntime.sleep(99)", NO_ANSWER),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_a_hostile_program_is_an_error_in_bounded_time_and_memory(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, message = PROGRAMS[case]
    program = tmp_path / "python3"
    program.write_text(f"#!{sys.executable} -IS\n{text}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(channels, "_END_S", 0.5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    nodes, settings = [Node(0, "localhost")], ConnectionSettings()
    _, answer = next(iter(request_all(nodes, settings, lambda _: without_values(StatusRequest), 1.0)))
    assert isinstance(answer, HostError)
    assert re.search(message, str(answer)), answer
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB


# ---- many frames at once

TEXTS = st.one_of(
    st.text(max_size=9),
    st.text('ab\\"/\t\n\r\x1b\x1e\x7f\x9b\u2588\U0001f600\ud800', max_size=9),
    st.sampled_from(['"of"', "of", "pulse", "problems"]),
)
FRAMES = st.lists(
    st.one_of(
        st.builds(lambda texts: {"lines": [[0, 1.0, text] for text in texts]}, st.lists(TEXTS, max_size=3)),
        st.builds(lambda text: {"offsets": {text: 1}}, TEXTS),
        st.sampled_from([{"past": True}, {"pulse": True}, {"of": 1, "past": True}, {"of": 9, "past": True}]),
    ),
    max_size=6,
)


class Pieces(RecordedChannel):
    """A channel that returns recorded pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__(b"")
        self.chunks = [piece for piece in pieces if piece]


def read_stream(pieces: list[bytes]) -> list[LogsFrame]:
    session = Session(NODE, Pieces(pieces))
    session.post(without_values(LogsRequest))
    frames: list[LogsFrame] = []
    while session.channel.chunks:  # type: ignore[attr-defined]  # of Pieces
        frames += session.read_frames()
    return frames


@fuzzed(FRAMES, st.integers(0, 300), st.sampled_from([b"", b"welcome\n"]))
def test_frames_that_arrive_together_are_read_like_single_ones(
    sent: list[dict[str, Any]], cut: int, greeting: bytes
) -> None:
    data = greeting + b"".join(map(frame, sent))
    found = read_stream([data[:cut], data[cut:]])
    assert found == read_stream([greeting, *map(frame, sent)])
    assert not [
        text for each in found for _, _, text in each.lines if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
    ]


@pytest.mark.parametrize(
    "second", [b'{"lines": [[0, 1.0, "a\x1b[2J"]]}', b"{}{}", b"", b"nonsense", b"[" * 5000, b'{"lines": 1}']
)
def test_a_malformed_frame_after_a_good_one_is_an_error(second: bytes) -> None:
    with pytest.raises(HostError, match="not from torchfab"):
        read_stream([frame({"past": True}) + b"\x1e%d\n%s" % (len(second), second) + frame({"past": True})])


@fuzzed(TEXTS)
def test_json_that_counts_as_clean_needs_no_cleaning(text: str) -> None:
    data = json.dumps([text]).encode()
    assert not messages.is_clean(data) or messages.cleaned([text]) == msgspec.json.decode(data)


@pytest.mark.parametrize("text", ["step 1", 'it\'s "quoted"', "C:\\new", "tab\there", "50%|\u2588\u2588 | caf\xe9"])
def test_ordinary_log_lines_count_as_clean(text: str) -> None:
    assert messages.is_clean(json.dumps([text]).encode())

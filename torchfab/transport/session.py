"""A session: the conversation with torchfab's program on one node, over whatever carries its stdin and stdout.

The program of `torchfab.transport.bundle` is sent first; then requests go out as JSON, a line each, and answers come
as frames.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol

from torchfab.core.errors import HostError
from torchfab.core.specs import Node
from torchfab.transport import bundle, schema, validation

FRAME = re.compile(rb"\x1e(\d{1,12})\n")
MOST_ANSWER_BYTES = 64 * 1024 * 1024
_log = logging.getLogger(__name__)


class Channel(Protocol):
    """The two ends of a program on a node."""

    def write(self, data: bytes) -> None: ...
    def read(self, timeout_s: float) -> bytes | None:
        """Return what has arrived, b"" at the end, None when nothing came in time."""

    def exit_status(self) -> tuple[int | None, str]:
        """Return the exit code of a program that has ended, and what it said on stderr."""

    def close(self) -> None: ...


class Session:
    """A conversation with one node.

    Parameters
    ----------
    node : Node
        The node.
    pipe : Pipe
        A program started by `bundle.argv`, which waits for its source.
    silence_s : float
        After how long without a sign of life the other end of a stream is taken to be gone. Default 30.
    """

    def __init__(self, node: Node, pipe: Channel, silence_s: float = 30.0) -> None:
        self.node, self.channel, self.silence_s = node, pipe, silence_s
        self.log = logging.LoggerAdapter(_log, {"host": node.label})
        self.heard = self.sent = time.monotonic()
        self.arrived = bytearray()
        self.asked = 0
        self.early: dict[int, dict[str, Any]] = {}  # by number: the answer that a thread got which waited for another
        self.answered = False
        self.op = ""
        self.asking = threading.Lock()  # held while a request is sent
        self.reading = threading.Lock()  # held while one thread waits for what arrives
        try:
            self.channel.write(bundle.packed())
        except OSError as error:
            raise self._ended() from error

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and return its answer.

        Raises
        ------
        HostError
            No answer within `timeout_s` seconds, the program on the node ended, or another thread has asked since.
        """
        return self.answer(self.post(request), timeout_s)

    def answer(self, number: int, timeout_s: float) -> dict[str, Any]:
        """Return the answer to the request that `post` gave this number.

        Where another thread waits for the answer to an earlier request, that one gets the first frame that comes, and
        gives up: nobody has to look up in between to see whether something else was asked.

        Raises
        ------
        HostError
            As of `ask`.
        """
        deadline = time.monotonic() + timeout_s
        while self.reading.acquire(timeout=max(0.0, deadline - time.monotonic())):
            try:
                frame = self.early.pop(number, None) or self._read_frame(deadline - time.monotonic())
                if frame and frame.get("of") == number:
                    return frame
                if number != self.asked:
                    self.early = {self.asked: frame} if frame and frame.get("of") == self.asked else {}
                    raise HostError("it was asked something else meanwhile")
            finally:
                self.reading.release()
            if time.monotonic() >= deadline:
                break
        self.log.debug("no answer to request %d: %s, within %g s", number, self.op, timeout_s)
        what = "no answer" if self.answered else "the connection stands, but torchfab's program there gave no answer"
        raise HostError(
            f"{what} within {timeout_s:g} s", "see whether the node is overloaded, or its disk or home folder hangs"
        )

    def post(self, request: Mapping[str, Any]) -> int:
        """Send a request, and return its number; what it is answered is taken with `answer`, a stream with `take`."""
        with self.asking:
            self.asked += 1
            self.op = str(request.get("op", ""))
            self.heard = self.sent = time.monotonic()
            marked = {**request, "number": self.asked, "pulse_s": self.silence_s / 4}
            data = json.dumps(marked).encode() + b"\n"
            self.log.debug("request %d: %s, %d bytes", self.asked, self.op, len(data))
            try:
                self.channel.write(data)
            except OSError as error:
                raise self._ended() from error
            return self.asked

    def take(self, timeout_s: float = 0.0) -> list[dict[str, Any]]:
        """Return the frames that have arrived, waiting at most `timeout_s` seconds for a first one.

        Raises
        ------
        HostError
            The program on the node ended, or gave no sign of life for `silence_s` seconds.
        """
        data = self.channel.read(timeout_s)
        if data == b"":
            raise self._ended()
        self._hear(data)
        self.arrived += data or b""
        frames = []
        while (frame := self._next_frame()) is not None:
            frames.append(frame)
        return [frame for frame in frames if "pulse" not in frame and self._is_of_now(frame)]

    def _hear(self, data: bytes | None) -> None:
        now = time.monotonic()
        if data:
            self.heard = now
        elif now - self.heard > self.silence_s:
            raise HostError(f"no sign of life for {self.silence_s:g} s", "see whether the node and its link are up")

    def _read_frame(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the next frame, waiting at most `timeout_s` seconds for more of it to arrive."""
        frame = self._next_frame()
        if frame is not None:
            return frame
        data = self.channel.read(max(0.0, timeout_s))
        if data == b"":
            raise self._ended()
        self.arrived += data or b""
        return self._next_frame()

    def _next_frame(self) -> dict[str, Any] | None:
        head = FRAME.search(self.arrived)
        if head is None:
            del self.arrived[:-16]  # what a start-up file prints before we come; a head may just be arriving
            return None
        length = int(head[1])
        if length > MOST_ANSWER_BYTES:
            raise HostError(f"an answer of {length} bytes is more than torchfab takes")
        end = head.end() + length
        if len(self.arrived) < end:
            return None
        text = bytes(self.arrived[head.end() : end])
        del self.arrived[:end]
        answer = _decode(text)
        # An answer to what was asked before, and no longer waited for, may be of another shape.
        if self._is_of_now(answer) and not validation.is_one(answer, self.op):
            raise _somebody_else(text)
        self.answered = True
        times = (answer.get("of", self.asked), self.op, length, time.monotonic() - self.sent)
        self.log.debug("answer to request %s: %s, %d bytes, after %.3f s", *times)
        return answer

    def _is_of_now(self, answer: Mapping[str, Any]) -> bool:
        return bool(answer.get("of", self.asked) == self.asked)

    def _ended(self) -> HostError:
        code, stderr = self.channel.exit_status()
        problem = _explain_end(code, schema.cleaned(stderr), self.answered)
        self.log.debug("interpreter: %s", problem.message)
        return problem

    def close(self) -> None:
        """Hang up; the program on the node ends, and takes back what was only prepared."""
        self.log.debug("closing the connection")
        self.channel.close()


def _decode(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
        return dict(value if schema.is_clean(text) else schema.cleaned(value))
    except (ValueError, TypeError, RecursionError):
        raise _somebody_else(text) from None


def _somebody_else(text: bytes) -> HostError:
    return HostError(f"what answers there is not torchfab's program: {text[:40]!r}", _TRY_THE_LOGIN)


_TRY_THE_LOGIN = "see what `ssh HOST python3 --version` prints; a start-up file (.bashrc) may be in the way"


def _explain_end(code: int | None, stderr: str, answered: bool) -> HostError:
    last = next((line for line in reversed(stderr.splitlines()) if line.strip()), "")
    name_one = "install one, or name it with torchfab.agent_python in fabric.yaml"
    if "torchfab-needs-python" in stderr:
        return HostError(last.replace("torchfab-needs-python", "torchfab needs a python3 of at least"), name_one)
    if not answered and (code == 127 or "not found" in last):
        return HostError(f"torchfab needs a python3 (3.9 or newer) there: {last or 'not found'}", name_one)
    if code is None:
        return HostError("the connection was lost" + (f": {last}" if last else ""), "see whether the node is still up")
    how = "was killed there" if code < 0 else f"ended there with code {code}"
    when = "" if answered else " before it answered"
    return HostError(f"torchfab's program {how}{when}{': ' + last if last else ''}", "" if answered else _TRY_THE_LOGIN)

"""A session: requests to torchfab's program on one node, and its answers, over a channel to its stdin and stdout.

The program of `torchfab.transport.bundle` is sent first. Each request is one line of JSON, and answers come as
frames: `\x1e<length>\n<JSON>`.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Sequence
from typing import Any, Generic, Protocol

from msgspec import Struct

from torchfab.core.errors import HostError
from torchfab.core.specs import Node
from torchfab.transport import bundle, messages
from torchfab.transport.messages import AnswerType, Header, MalformedError, Problem, Request

FRAME = re.compile(rb"\x1e(\d{1,12})\n")
MOST_ANSWER_BYTES = 64 * 1024 * 1024
_MOST_PROBLEMS, _LONGEST_PROBLEM = 50, 10_000  # characters
_log = logging.getLogger(__name__)


class Channel(Protocol):
    """The stdin and stdout of a program on a node."""

    def write(self, data: bytes) -> None:
        """Write to the program's stdin.

        Parameters
        ----------
        data : bytes
            The bytes.
        """

    def read(self, timeout_s: float) -> bytes | None:
        """Read from the program's stdout.

        Parameters
        ----------
        timeout_s : float
            How long to wait for the first byte, in seconds.

        Returns
        -------
        bytes or None
            b"" at the end; None when nothing arrived in time.
        """

    def exit_status(self) -> tuple[int | None, str]:
        """Return the exit code and stderr of a program that has ended.

        Returns
        -------
        tuple of int or None, str
            The code is None if the connection was lost.
        """

    def close(self) -> None:
        """Close stdin and stdout."""


class Pending(Struct, Generic[AnswerType], frozen=True):
    """A request that was sent and is not answered yet: its number, and the type of its answer."""

    number: int
    answer_type: type[Any]


class _Frame(Struct, frozen=True):
    header: Header
    data: bytes


class NodeError(HostError):
    """A node could not carry out a request.

    Parameters
    ----------
    problems : sequence of Problem
        The problems that the node reports.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        texts = [each.what + (f"\n  fix: {each.fix}" if each.fix else "") for each in problems]
        super().__init__("\n".join(text[:_LONGEST_PROBLEM] for text in texts[:_MOST_PROBLEMS]))
        self.problems = tuple(problems)


class Session:
    """The session with one node.

    Parameters
    ----------
    node : Node
        The node.
    channel : Channel
        A program started by `bundle.argv`, which reads its source from stdin.
    silence_s : float
        Seconds without any frame of a stream after which the connection counts as lost. Default 30.
    """

    def __init__(self, node: Node, channel: Channel, silence_s: float = 30.0) -> None:
        self.node, self.channel, self.silence_s = node, channel, silence_s
        self.log = logging.LoggerAdapter(_log, {"host": node.label})
        self.last_read = self.sent_at = time.monotonic()
        self.arrived = bytearray()
        self.number = 0  # of the last request
        self.answer_type: type[Any] = messages.Done  # of the last request
        self.name = ""  # of the last request
        # Answers by number, read by a thread that waited for the answer to another request.
        self.early: dict[int, _Frame] = {}
        self.has_answered = False
        self.send_lock = threading.Lock()
        self.read_lock = threading.Lock()  # held while one thread waits for data
        try:
            self.channel.write(bundle.packed())
        except OSError as error:
            raise self._ended() from error

    def request(self, request: Request[AnswerType], timeout_s: float) -> AnswerType:
        """Send a request and return its answer.

        Parameters
        ----------
        request : Request
            The request.
        timeout_s : float
            Time limit for the answer, in seconds.

        Returns
        -------
        Struct
            The answer.

        Raises
        ------
        NodeError
            The node could not carry it out.
        HostError
            No answer in time, the program on the node ended, or another thread has sent a request since.
        """
        return self.wait(self.post(request), timeout_s)

    def wait(self, pending: Pending[AnswerType], timeout_s: float) -> AnswerType:
        """Return the answer to a request that was sent with `post`.

        A thread that waits for the answer to an earlier request reads the first frame that arrives and then raises, so
        that no thread has to poll for a newer request.

        Parameters
        ----------
        pending : Pending
            The result of `post`.
        timeout_s : float
            Time limit for the answer, in seconds.

        Returns
        -------
        Struct
            The answer.

        Raises
        ------
        NodeError, HostError
            As `request` raises them.
        """
        number, deadline = pending.number, time.monotonic() + timeout_s
        while self.read_lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            try:
                frame = self.early.pop(number, None) or self._read_frame(deadline - time.monotonic())
                if frame and frame.header.of == number:
                    answer: AnswerType = _decode(frame, pending.answer_type)
                    return answer
                if frame and frame.header.of is None and not frame.header.pulse:
                    raise _not_ours(frame.data)
                if number != self.number:
                    self.early = {self.number: frame} if frame and frame.header.of == self.number else {}
                    raise HostError("another request was sent before its answer arrived")
            finally:
                self.read_lock.release()
            if time.monotonic() >= deadline:
                break
        self.log.debug("no answer to request %d: %s, within %g s", number, self.name, timeout_s)
        problem = (
            "no answer" if self.has_answered else "the connection is up, but torchfab's program there gave no answer"
        )
        fix = "check whether the node is overloaded, or its disk or home folder hangs"
        raise HostError(f"{problem} within {timeout_s:g} s", fix)

    def post(self, request: Request[AnswerType]) -> Pending[AnswerType]:
        """Send a request without waiting for its answer.

        Parameters
        ----------
        request : Request
            The request. The frames of a streaming request are read with `read_frames`.

        Returns
        -------
        Pending
            For `wait`.

        Raises
        ------
        HostError
            The program on the node has ended.
        """
        with self.send_lock:
            self.number += 1
            self.answer_type, self.name = request.ANSWER, request.name
            self.last_read = self.sent_at = time.monotonic()
            data = request.encode(self.number, self.silence_s / 4)
            self.log.debug("request %d: %s, %d bytes", self.number, self.name, len(data))
            try:
                self.channel.write(data)
            except OSError as error:
                raise self._ended() from error
            return Pending(self.number, request.ANSWER)

    def read_frames(self, timeout_s: float = 0.0) -> list[Any]:
        """Return the frames of the last request that have arrived.

        Parameters
        ----------
        timeout_s : float
            How long to wait for a first one, in seconds. Default 0.

        Returns
        -------
        list of Struct
            Structs of the request's answer type.

        Raises
        ------
        HostError
            The program on the node ended, or sent nothing for `silence_s` seconds.
        """
        data = self.channel.read(timeout_s)
        if data == b"":
            raise self._ended()
        self._check_silence(data)
        self.arrived += data or b""
        frames = self._take_plain_frames()
        while (frame := self._next_frame()) is not None:
            if not frame.header.pulse and frame.header.of in (None, self.number):
                frames.append(_decode_frame(frame, self.answer_type))
        return frames

    def _take_plain_frames(self) -> list[Any]:
        """Take all frames that have arrived, decoded at once; none if there is anything else among them.

        Frames of few lines, read one by one, cost more than all else that is done with a log line.
        """
        head = FRAME.match(self.arrived)
        if head is None or len(self.arrived) <= head.end() + int(head[1]):  # less than one whole frame, or just one
            return []
        parts = FRAME.split(self.arrived)[1:]
        lengths, frames = list(map(int, parts[::2])), parts[1::2]
        if len(frames[-1]) < lengths[-1]:
            del lengths[-1], frames[-1]
        if list(map(len, frames)) != lengths:
            return []
        decoded = messages.decode_stream(frames, self.answer_type)
        if decoded is None:
            return []
        self.has_answered = True
        size = sum(lengths) + sum(len(str(length)) + 2 for length in lengths)
        self.log.debug("%d frames of request %d: %s, %d bytes", len(frames), self.number, self.name, size)
        del self.arrived[:size]
        return decoded

    def _check_silence(self, data: bytes | None) -> None:
        now = time.monotonic()
        if data:
            self.last_read = now
        elif now - self.last_read > self.silence_s:
            raise HostError(f"no data for {self.silence_s:g} s", "check that the node and its network link are up")

    def _read_frame(self, timeout_s: float) -> _Frame | None:
        """Return the next frame, waiting at most `timeout_s` seconds for more of it to arrive."""
        frame = self._next_frame()
        if frame is not None:
            return frame
        data = self.channel.read(max(0.0, timeout_s))
        if data == b"":
            raise self._ended()
        self.arrived += data or b""
        return self._next_frame()

    def _next_frame(self) -> _Frame | None:
        head = FRAME.search(self.arrived)
        if head is None:
            del self.arrived[:-16]  # the output of a start-up file; the header of a frame may be incomplete
            return None
        length = int(head[1])
        if length > MOST_ANSWER_BYTES:
            raise HostError(f"an answer of {length} bytes is over the limit of {MOST_ANSWER_BYTES}")
        end = head.end() + length
        if len(self.arrived) < end:
            return None
        data = bytes(self.arrived[head.end() : end])
        del self.arrived[:end]
        try:
            header = messages.decode(data, Header)
        except MalformedError:
            raise _not_ours(data) from None
        self.has_answered = True
        number = self.number if header.of is None else header.of
        elapsed_s = time.monotonic() - self.sent_at
        self.log.debug("answer to request %s: %s, %d bytes, after %.3f s", number, self.name, length, elapsed_s)
        return _Frame(header, data)

    def _ended(self) -> HostError:
        code, stderr = self.channel.exit_status()
        problem = _explain_end(code, messages.cleaned(stderr), self.has_answered)
        self.log.debug("interpreter: %s", problem.message)
        return problem

    def close(self) -> None:
        """Close the channel. The program on the node ends, and rolls back what was not committed."""
        self.log.debug("closing the connection")
        self.channel.close()


def _decode(frame: _Frame, kind: type[Any]) -> Any:
    if frame.header.problems:
        raise NodeError(frame.header.problems)
    return _decode_frame(frame, kind)


def _decode_frame(frame: _Frame, kind: type[Any]) -> Any:
    try:
        return messages.decode(frame.data, kind)
    except MalformedError:
        raise _not_ours(frame.data) from None


def _not_ours(data: bytes) -> HostError:
    return HostError(f"the output is not from torchfab's program: {data[:40]!r}", _TRY_THE_LOGIN)


_TRY_THE_LOGIN = "run `ssh HOST python3 --version`: a start-up file (.bashrc) may print something else"


def _explain_end(code: int | None, stderr: str, answered: bool) -> HostError:
    last = next((line for line in reversed(stderr.splitlines()) if line.strip()), "")
    name_one = "install one, or name it in the setting agent_python (fab config)"
    if "torchfab-needs-python" in stderr:
        return HostError(last.replace("torchfab-needs-python", "torchfab needs a python3 of at least"), name_one)
    if not answered and (code == 127 or "not found" in last):
        return HostError(f"torchfab needs a python3 (3.9 or newer) there: {last or 'not found'}", name_one)
    if code is None:
        return HostError("the connection was lost" + (f": {last}" if last else ""), "check that the node is still up")
    how = "was killed there" if code < 0 else f"ended there with code {code}"
    when = "" if answered else " before it answered"
    return HostError(f"torchfab's program {how}{when}{': ' + last if last else ''}", "" if answered else _TRY_THE_LOGIN)

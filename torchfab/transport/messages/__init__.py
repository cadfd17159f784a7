"""The messages of the node protocol: requests to torchfab's program on a node, and its answers, as structs.

Each request names the type of its answer in `ANSWER`; for a streaming request, the type of each frame. Numbers have
bounds (`torchfab.core.bounded_types`), and terminal control characters are removed from texts. `decode` raises
`MalformedError` for anything else.

The program on the node (`torchfab.remote.server`) is standard library only: it reads and writes the same fields as
plain JSON. Fields that a struct does not name are ignored.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
from msgspec import Struct

from torchfab.core.bounded_types import Text
from torchfab.core.log_lines import has_controls, strip_controls

AnswerType = TypeVar("AnswerType", bound=Struct)
_BUILDING = threading.Lock()
# Control characters, and surrogates, which msgspec refuses where they are alone.
_HARMFUL_ESCAPES = re.compile(rb"\\(?:[bfr]|u00[0189]|u007[fF]|u[dD][89a-fA-F])")


class MalformedError(Exception):
    """The node sent something that is not an answer to the request."""


class Problem(Struct, frozen=True):
    """The reason why a node could not carry out a request, and how to fix it."""

    what: Text
    fix: str


class Header(Struct, frozen=True, kw_only=True):
    """The fields that every frame of a node has.

    Parameters
    ----------
    of : int, optional
        Number of the request that the frame answers; None in a frame of a stream.
    pulse : bool
        Whether the frame only shows that the connection works.
    problems : list of Problem
        Why the request could not be carried out.
    """

    of: int | None = None
    pulse: bool = False
    problems: list[Problem] = []


_HEADER_FIELDS = tuple(f'"{name}"'.encode() for name in Header.__struct_fields__)


class Request(Struct, Generic[AnswerType], frozen=True, kw_only=True, tag_field="op"):
    """A request; `ANSWER` is the type of its answer, or of each frame of a stream."""

    ANSWER: ClassVar[type[Any]]

    @property
    def name(self) -> str:
        """The name of the operation in the node protocol."""
        return str(self.__struct_config__.tag)

    def encode(self, number: int, pulse_s: float) -> bytes:
        """Return the request as one line of JSON.

        Parameters
        ----------
        number : int
            Number of the request, which its answer repeats.
        pulse_s : float
            Longest time between two frames of a stream, in seconds.

        Returns
        -------
        bytes
            The line, with its line end.
        """
        # msgspec's own encoder rejects lone surrogates, by which Python represents bytes that are not UTF-8.
        return json.dumps({**msgspec.to_builtins(self), "number": number, "pulse_s": pulse_s}).encode() + b"\n"


class Done(Struct, frozen=True):
    """The answer to a request that has nothing to report."""


def decode(data: bytes, kind: type[AnswerType]) -> AnswerType:
    """Decode a message of a node.

    Parameters
    ----------
    data : bytes
        JSON.
    kind : type
        The expected struct.

    Returns
    -------
    Struct
        The answer, whose texts hold no control characters except line ends.

    Raises
    ------
    MalformedError
        The data is not JSON, not of this type, or nested too deeply.
    """
    try:
        decoder = _decoder(kind)
        if is_clean(data):
            found: AnswerType = decoder.decode(data)
            return found
        return msgspec.convert(cleaned(json.loads(data)), kind)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise MalformedError(str(error)) from None


def decode_stream(frames: Sequence[bytes], kind: type[AnswerType]) -> list[AnswerType] | None:
    """Decode many frames of a stream at once, if none of them needs cleaning or has a header.

    Parameters
    ----------
    frames : sequence of bytes
        The JSON of each frame.
    kind : type
        The expected struct.

    Returns
    -------
    list of Struct or None
        None if a text may hold control characters, or a frame has a header or is malformed: decode each frame then.
    """
    data = b"".join(frames)
    # Quotation marks within a text stand after a backslash: these are whole texts or names, never parts of a log line.
    if not is_clean(data) or any(name in data for name in _HEADER_FIELDS):
        return None
    try:
        return list(map(_decoder(kind).decode, frames))
    except (msgspec.MsgspecError, RecursionError):
        return None


@lru_cache(None)
def _decoder(kind: type[Any]) -> msgspec.json.Decoder[Any]:
    # msgspec 0.22 publishes its description of a struct before it is complete: another thread that uses it then crashes
    # the process (SIGSEGV). Afterwards `convert`, too, finds a complete one.
    with _BUILDING:
        return msgspec.json.Decoder(kind)


def is_clean(data: bytes) -> bool:
    """Return whether JSON has no control characters in its texts except tabs and line ends, and is ASCII.

    Parameters
    ----------
    data : bytes
        JSON.

    Returns
    -------
    bool
        False if `cleaned` may have to remove something.
    """
    if not data.isascii() or has_controls(data.decode()):
        return False
    return b"\\" not in data or not _HARMFUL_ESCAPES.search(data)


def cleaned(value: Any) -> Any:
    """Remove the escape sequences and control characters of a terminal from all texts of a JSON value.

    Parameters
    ----------
    value : Any
        The value; a text keeps its line ends.

    Returns
    -------
    Any
        The value without them.
    """
    if isinstance(value, str):
        return value if value.isprintable() else "\n".join(map(strip_controls, value.split("\n")))
    if isinstance(value, list):
        return [cleaned(each) for each in value]
    return {cleaned(name): cleaned(each) for name, each in value.items()} if isinstance(value, dict) else value

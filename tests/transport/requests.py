"""Requests for tests: any JSON object, or a request of each type without values."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from torchfab.transport import messages
from torchfab.transport.messages import MalformedError, Request
from torchfab.transport.messages.job import LogsRequest
from torchfab.transport.messages.load import JobLoadRequest, LoadRequest
from torchfab.transport.messages.run import EndRunRequest, RunRequest
from torchfab.transport.messages.slurm import SlurmLogsRequest

RequestType = type[Request[Any]]
STREAMING: tuple[RequestType, ...] = (
    *(LogsRequest, LoadRequest, JobLoadRequest, SlurmLogsRequest),
    *(RunRequest, EndRunRequest),
)


class RawRequest(Request[Any], frozen=True, kw_only=True):
    """A request of any fields, whose answer may have any fields."""

    fields: dict[str, Any]
    ANSWER = dict

    def encode(self, number: int, pulse_s: float) -> bytes:
        return json.dumps({**self.fields, "number": number, "pulse_s": pulse_s}).encode() + b"\n"


def request_types() -> list[RequestType]:
    """Return all requests of torchfab."""
    for module in pkgutil.iter_modules(messages.__path__):
        import_module(f"{messages.__name__}.{module.name}")
    found = {each for each in _subclasses(Request) if hasattr(each, "ANSWER")}
    return sorted((each for each in found if each.__module__.startswith("torchfab.")), key=lambda each: each.__name__)


def _subclasses(kind: RequestType) -> Iterator[RequestType]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)


def operation(kind: RequestType) -> str:
    """Return the name of the operation that a request has on the wire."""
    return str(kind.__struct_config__.tag)


def without_values(kind: Any) -> Request[Any]:
    """Return a request of this type, every field of which is None."""
    request: Request[Any] = kind(**dict.fromkeys(kind.__struct_fields__))
    return request


def accepts(kind: RequestType, answer: Any) -> bool:
    """Return whether a value is an answer to a request of this type."""
    try:
        messages.decode(json.dumps(answer).encode(), kind.ANSWER)
    except MalformedError:
        return False
    return True

"""Messages about ports on which programs listen on a node."""

from __future__ import annotations

from msgspec import Struct

from torchfab.core.bounded_types import Port, Whole
from torchfab.transport.messages import Request


class Listener(Struct, frozen=True, kw_only=True):
    """A port on which a process listens; the address is `localhost` if it listens on all addresses."""

    port: Port
    address: str
    pid: Whole
    command: str


class ListenersAnswer(Struct, frozen=True):
    """The ports on which a program listens."""

    listeners: list[Listener]


class ListenersRequest(Request[ListenersAnswer], frozen=True, tag="listeners"):
    """Find the ports on which a program of this user listens."""

    program: str
    ANSWER = ListenersAnswer

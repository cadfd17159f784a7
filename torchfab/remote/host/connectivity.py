"""The way from this node to node 0: what its name resolves to, which interface leads there, whether its port connects.

Node 0 listens for as long as the conversation lasts, and greets whoever comes with a random word, so that a connection
to another machine is not taken for one to node 0.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time

from torchfab.remote.host import code_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_listeners: list[socket.socket] = []
_REJECTED = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM, errno.ENETDOWN)


def listen(port: int | None) -> dict[str, Any]:
    """Listen on `port` (0: a free one) until this program ends; return `port`, or `problem`. None: do nothing."""
    if port is None:
        return {}
    try:
        listener = _listener(port)
    except OSError as error:
        what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        return {"port": port, "problem": f"port {port} {what}"}
    _listeners.append(listener)
    greeting = os.urandom(8).hex()
    threading.Thread(target=_greet, args=(listener, greeting.encode()), daemon=True).start()
    return {"port": listener.getsockname()[1], "greeting": greeting}


def _listener(port: int) -> socket.socket:
    # As a rendezvous store does: all addresses, of both kinds where the machine has both.
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
    return socket.create_server(("", port), backlog=1024)


def _greet(listener: socket.socket, greeting: bytes) -> None:
    while True:
        connection, _ = listener.accept()
        try:
            connection.sendall(greeting)
        except OSError:  # it has hung up already
            pass
        connection.close()


def try_out(request: dict[str, Any]) -> dict[str, Any]:
    """Return how node 0 is reached from here.

    Parameters
    ----------
    request : dict
        `address` of node 0, `port` where it listens (None: it does not), `greeting`, `timeout_s` of a connection,
        `tokens` (paths of node 0's files, by place), `workdir` and `names` (of files to be told one by one), or None.
    """
    begun = time.monotonic()
    found = addresses(request["address"])
    answer: dict[str, Any] = {"addresses": found, "resolve_s": time.monotonic() - begun}
    if found:
        answer["source"] = _source(found[0])
    if found and request["port"] is not None:
        answer["connection"] = connect(found, request["port"], request["greeting"], request["timeout_s"])
    answer["sees"] = {place: os.path.exists(path) for place, path in request["tokens"].items()}
    if request["files"]:
        answer["files"] = code_digest.files(request["workdir"], request["names"])
    return answer


def addresses(name: str) -> list[str]:
    """Return what a name resolves to, as a connection would try it; nothing when it does not resolve."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def _source(address: str) -> str:
    """Return the address from which this machine would send to `address`: connecting UDP asks the routes only."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def connect(found: list[str], port: int, greeting: str, timeout_s: float) -> dict[str, Any]:
    """Return how connecting went: `outcome` is connected, refused, timeout, rejected, stranger or failed."""
    last: dict[str, Any] = {}
    for address in found:
        begun = time.monotonic()
        outcome, why = _outcome(address, port, greeting, timeout_s)
        last = {"outcome": outcome, "why": why, "address": address, "seconds": time.monotonic() - begun}
        if outcome == "connected":
            break
    return last


def _outcome(address: str, port: int, greeting: str, timeout_s: float) -> tuple[str, str]:
    try:
        with socket.create_connection((address, port), timeout_s) as connection:
            said = connection.recv(64).decode(errors="replace")
    except ConnectionRefusedError:
        return "refused", ""
    except (TimeoutError, socket.timeout):  # before Python 3.10 they are two
        return "timeout", ""
    except OSError as error:
        kind = "rejected" if error.errno in _REJECTED else "failed"
        return kind, error.strerror or str(error)
    return ("connected", "") if said == greeting else ("stranger", "")

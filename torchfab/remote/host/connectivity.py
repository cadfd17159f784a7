"""The network path from this node to node 0: name resolution, source address, and a connection to its port.

Node 0 listens until its session ends and sends every client a random greeting. Without the greeting, a connection
to another machine could pass for one to node 0.
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
    """Listen on a port until this program ends.

    Parameters
    ----------
    port : int, optional
        0: a free port. None: do not listen.

    Returns
    -------
    dict
        `port` and `greeting`; or `port` and `problem`; empty if `port` is None.
    """
    if port is None:
        return {}
    try:
        listener = _listener(port)
    except OSError as error:
        problem = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        return {"port": port, "problem": f"port {port} {problem}"}
    _listeners.append(listener)
    greeting = os.urandom(8).hex()
    threading.Thread(target=_greet, args=(listener, greeting.encode()), daemon=True).start()
    return {"port": listener.getsockname()[1], "greeting": greeting}


def _listener(port: int) -> socket.socket:
    # Listen as a rendezvous store does: on all addresses, IPv4 and IPv6 if the machine has both.
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
        except OSError:  # the client has already closed the connection
            pass
        connection.close()


def probe_node_0(request: dict[str, Any]) -> dict[str, Any]:
    """Test how this node reaches node 0.

    Parameters
    ----------
    request : dict
        `address` of node 0; `port` on which it listens, or None; `greeting`; `timeout_s` of a connection;
        `tokens` (paths of files that node 0 made, by place); `files` (whether to return file digests); `workdir` and
        `names` (the files to hash, or None).

    Returns
    -------
    dict
        `addresses`, `resolve_s`, `sees` (by place, whether node 0's file exists here), and, if they apply, `source`,
        `connection`, `files`.
    """
    begun = time.monotonic()
    found = resolve(request["address"])
    answer: dict[str, Any] = {"addresses": found, "resolve_s": time.monotonic() - begun}
    if found:
        answer["source"] = _source(found[0])
    if found and request["port"] is not None:
        answer["connection"] = connect(found, request["port"], request["greeting"], request["timeout_s"])
    answer["sees"] = {place: os.path.exists(path) for place, path in request["tokens"].items()}
    if request["files"]:
        answer["files"] = code_digest.file_digests(request["workdir"], request["names"])
    return answer


def resolve(name: str) -> list[str]:
    """Resolve a host name.

    Parameters
    ----------
    name : str
        A host name or an address.

    Returns
    -------
    list of str
        The addresses, in the order in which a connection tries them; empty if the name does not resolve.
    """
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def _source(address: str) -> str:
    """Return the source address for packets to `address`: connecting a UDP socket only consults the routing table."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def connect(found: list[str], port: int, greeting: str, timeout_s: float) -> dict[str, Any]:
    """Connect to the first address that answers with the greeting.

    Parameters
    ----------
    found : list of str
        The addresses to try, in order.
    port : int
        The port.
    greeting : str
        The text that node 0 sends.
    timeout_s : float
        Limit for each connection.

    Returns
    -------
    dict
        `outcome` (connected, refused, timeout, rejected, stranger or failed), `why`, `address`, `seconds`.
    """
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
            received = connection.recv(64).decode(errors="replace")
    except ConnectionRefusedError:
        return "refused", ""
    except (TimeoutError, socket.timeout):  # two distinct classes before Python 3.10
        return "timeout", ""
    except OSError as error:
        kind = "rejected" if error.errno in _REJECTED else "failed"
        return kind, error.strerror or str(error)
    return ("connected", "") if received == greeting else ("stranger", "")

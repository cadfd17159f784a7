"""What is wrong on the way from every node to node 0: names, routes, interfaces, firewalls, the port. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torchfab.core.specs import Node
from torchfab.doctor.finding import ERROR, WARNING, Finding, differing
from torchfab.doctor.model import CheckRequirements, NodeReport

VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")


def address_of(first: Node, wanted: CheckRequirements) -> str:
    """Return the address by which the other nodes reach node 0."""
    return wanted.master_addr or first.address or first.host


def findings(nodes: Sequence[NodeReport], wanted: CheckRequirements) -> Iterator[Finding]:
    """Yield what is wrong on the way to node 0."""
    first = nodes[0]
    address = address_of(first.node, wanted)
    yield from _port(first)
    for seen in nodes:
        if seen.connectivity:
            yield from _name(seen, first, address)
            yield from _connection(seen, first, address)
        yield from _interface_names(seen, wanted)
        if len(nodes) > 1:
            yield from _own_name(seen, first, wanted)
    yield from _between(nodes, address)


def _port(first: NodeReport) -> Iterator[Finding]:
    told = first.part("port") or {}
    if told.get("problem"):
        fix = f"choose another --port, or see who has it: ss -ltnp 'sport = :{told['port']}'"
        yield Finding("port-taken", ERROR, (first.host,), told["problem"], fix=fix)


# ---- names


def is_loopback(address: str) -> bool:
    """Say whether an address never leaves its machine."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def same_network(seen: NodeReport, first: NodeReport) -> bool:
    """Say whether two nodes are one network stack, so that loopback addresses lead from one to the other."""
    ours, theirs = ((each.part("machine") or {}).get("network") for each in (seen, first))
    return ours is not None and ours == theirs


def _leads_back(seen: NodeReport, first: NodeReport) -> bool:
    """Say whether what a node takes for node 0 is that node itself."""
    return all(map(is_loopback, seen.connectivity["addresses"])) and not same_network(seen, first)


def _name(seen: NodeReport, first: NodeReport, address: str) -> Iterator[Finding]:
    found = seen.connectivity["addresses"]
    give = "give an address that every node can reach with --master-addr, or with address= in the hosts file"
    if not found:
        yield Finding(
            *("name-unknown", ERROR, (seen.host,), f"the address of node 0, {address}, does not resolve"),
            fix=f"add it to /etc/hosts or the name server; or {give}",
        )
    elif _leads_back(seen, first):
        yield Finding(
            *("name-loopback", ERROR, (seen.host,), f"the address of node 0, {address}, leads back to the node itself"),
            *("an address in the network", ", ".join(found)),
            f"correct its line in /etc/hosts there; or {give}",
        )


def _is_literal(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def _own_name(seen: NodeReport, first: NodeReport, wanted: CheckRequirements) -> Iterator[Finding]:
    machine = seen.part("machine")
    if machine is None or _variable(seen, wanted, "GLOO_SOCKET_IFNAME"):
        return
    found, name = machine["own_addresses"], machine["hostname"]
    alone = seen is not first and same_network(seen, first)
    if found and all(map(is_loopback, found)) and not alone and not _uses_loopback(first):
        yield Finding(
            *("own-name-loopback", WARNING, (seen.host,)),
            f"its own name, {name}, resolves to loopback: gloo listens there, where no other node can connect",
            *("an address in the network", ", ".join(found)),
            f"give {name} its network address in /etc/hosts there (Debian writes 127.0.1.1), or set GLOO_SOCKET_IFNAME",
        )


def _uses_loopback(first: NodeReport) -> bool:
    """Say whether node 0 is reached by a loopback address, as where all nodes are one machine."""
    found = first.connectivity.get("addresses", ())
    literal = first.node.address or first.node.host
    return bool(found) and _is_literal(literal) and all(map(is_loopback, found))


# ---- connections


def _connection(seen: NodeReport, first: NodeReport, address: str) -> Iterator[Finding]:
    told = seen.connectivity.get("connection")
    if told is None or told["outcome"] == "connected" or _leads_back(seen, first):
        return
    port = (first.part("port") or {}).get("port")
    kind, how, fix = _OUTCOMES[told["outcome"]]
    what = f"connecting to node 0, {address} ({told['address']}) port {port}, {how}"
    why = f": {told['why']}" if told["why"] else ""
    yield Finding(kind, ERROR, (seen.host,), what + why, "connected", *_tail(told, fix))


def _tail(told: Mapping[str, Any], fix: str) -> tuple[str, str]:
    outcome = {"timeout": "no answer", "stranger": "another machine's answer"}.get(told["outcome"], told["outcome"])
    return f"{outcome} after {told['seconds']:.1f} s", fix


_OPEN = "let the nodes reach each other on all ports above 1023"
_OUTCOMES = {
    "timeout": (
        "connect-timeout",
        "times out",
        f"a firewall drops the packets, or there is no way back: {_OPEN} (iptables -L, ufw status, security groups)",
    ),
    "refused": (
        "connect-refused",
        "is refused",
        f"a firewall rejects it, or the address is another machine's: {_OPEN}; compare with `ip -br addr` on node 0",
    ),
    "rejected": (
        "connect-rejected",
        "is rejected on the way",
        f"there is no route, or a firewall forbids it: {_OPEN}; see `ip route get ADDRESS` there",
    ),
    "stranger": (
        "connect-stranger",
        "reaches another machine",
        "correct the name in /etc/hosts or the name server, or give --master-addr",
    ),
    "failed": ("connect-failed", "fails", "see `ip route get ADDRESS` there"),
}


# ---- interfaces


def interface(seen: NodeReport) -> Mapping[str, Any] | None:
    """Return the interface by which a node would send to node 0; None where it is not known."""
    source = seen.connectivity.get("source")
    if not source:
        return None
    every = seen.part("interfaces") or ()
    return next((each for each in every if source in each["addresses"]), None)


def _variable(seen: NodeReport, wanted: CheckRequirements, name: str) -> str:
    told = seen.part("environment") or {}
    return str(wanted.env.get(name) or told.get(name, ""))


def _interface_names(seen: NodeReport, wanted: CheckRequirements) -> Iterator[Finding]:
    every = seen.part("interfaces")
    if every is None:
        return
    usable = [each["name"] for each in every if each["up"] and each["addresses"]]
    for variable in VARIABLES:
        given = _variable(seen, wanted, variable)
        if given and not chosen(variable, given, usable):
            yield Finding(
                *("interface-missing", ERROR, (seen.host,), f"{variable}={given} names no interface that is up there"),
                *(given, ", ".join(usable)),
                f"set {variable} to one that all nodes have, or unset it",
            )


def chosen(variable: str, given: str, names: Sequence[str]) -> list[str]:
    """Return the interfaces that a variable chooses.

    Gloo takes names; NCCL takes what names begin with, `=` before names, and `^` before what to leave out.
    """
    if variable != "NCCL_SOCKET_IFNAME":
        words = given.split(",")
        return [name for name in names if name in words]
    excluding, exact = given.startswith("^"), given.lstrip("^").startswith("=")
    words = [word for word in given.lstrip("^=").split(",") if word]
    hits = [name for name in names if any(name == word if exact else name.startswith(word) for word in words)]
    return [name for name in names if name not in hits] if excluding else hits


def _between(nodes: Sequence[NodeReport], address: str) -> Iterator[Finding]:
    found_it = [seen for seen in nodes[1:] if seen.connectivity.get("addresses")]
    others = [seen for seen in found_it if not all(map(is_loopback, seen.connectivity["addresses"]))]
    resolved = {seen.host: ", ".join(sorted(seen.connectivity["addresses"])) for seen in others}
    yield from differing(
        *("name-differs", WARNING, resolved, f"the address of node 0, {address}, resolves to something else"),
        "make /etc/hosts the same everywhere, or give --master-addr an address",
    )
    ways = {seen.host: found for seen in others if (found := interface(seen)) is not None}
    yield from differing(
        *("mtu-differs", WARNING, {host: str(each["mtu"]) for host, each in ways.items()}),
        "the MTU towards node 0 is another than elsewhere: large messages can hang",
        "set the same MTU on all nodes and switches: ip link set dev NAME mtu N",
    )

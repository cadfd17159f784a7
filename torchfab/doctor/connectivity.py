"""Findings about the connection from every node to node 0: names, routes, interfaces, firewalls, the port. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

from torchfab.core.specs import Node
from torchfab.doctor.finding import ERROR, WARNING, Finding, minority_findings
from torchfab.doctor.model import CheckRequirements, NodeReport
from torchfab.transport.messages.doctor import ConnectionTest, NetworkInterface

VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")


def master_address(first: Node, requirements: CheckRequirements) -> str:
    """Return the address at which the other nodes connect to node 0.

    Parameters
    ----------
    first : Node
        Node 0.
    requirements : CheckRequirements
        What the job needs.

    Returns
    -------
    str
        A name or an IP address.
    """
    return requirements.master_addr or first.address or first.host


def findings(nodes: Sequence[NodeReport], requirements: CheckRequirements) -> Iterator[Finding]:
    """Yield the findings about connections to node 0.

    Parameters
    ----------
    nodes : sequence of NodeReport
        All nodes, node 0 first.
    requirements : CheckRequirements
        What the job needs.

    Yields
    ------
    Finding
        About one node each, or about those that differ from most.
    """
    first = nodes[0]
    address = master_address(first.node, requirements)
    yield from _port(first)
    for node in nodes:
        if node.connectivity:
            yield from _name(node, first, address)
            yield from _connection(node, first, address, node.connectivity.connection)
        yield from _interface_names(node, requirements)
        if len(nodes) > 1:
            yield from _own_name(node, first, requirements)
    yield from _differences(nodes, address)


def _port(first: NodeReport) -> Iterator[Finding]:
    probe = first.parts.port
    if probe and probe.problem:
        fix = f"choose another --port, or see which program has it: ss -ltnp 'sport = :{probe.port}'"
        yield Finding("port-taken", ERROR, (first.host,), probe.problem, fix=fix)


# ---- names


def is_loopback(address: str) -> bool:
    """Test whether an address is a loopback address.

    Parameters
    ----------
    address : str
        An IP address, with or without a zone.

    Returns
    -------
    bool
        Whether packets to it stay on their machine.
    """
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def share_network(node: NodeReport, first: NodeReport) -> bool:
    """Test whether two nodes use one network stack, so that loopback addresses connect them.

    Parameters
    ----------
    node, first : NodeReport
        The nodes.

    Returns
    -------
    bool
        False if unknown.
    """
    machine, other = node.parts.machine, first.parts.machine
    return machine is not None and other is not None and machine.network == other.network


def _addresses(node: NodeReport) -> list[str]:
    """Return the addresses to which the address of node 0 resolves on a node."""
    return node.connectivity.addresses if node.connectivity else []


def _leads_back(node: NodeReport, first: NodeReport) -> bool:
    """Test whether the address of node 0 resolves to the node itself."""
    return all(map(is_loopback, _addresses(node))) and not share_network(node, first)


def _name(node: NodeReport, first: NodeReport, address: str) -> Iterator[Finding]:
    addresses = _addresses(node)
    give_address = "give an address that every node can reach with --master-addr, or with address= in the hosts file"
    if not addresses:
        yield Finding(
            *("name-unknown", ERROR, (node.host,), f"the address of node 0, {address}, does not resolve"),
            fix=f"add it to /etc/hosts or the name server; or {give_address}",
        )
    elif _leads_back(node, first):
        yield Finding(
            *("name-loopback", ERROR, (node.host,), f"the address of node 0, {address}, resolves to the node itself"),
            *("an address in the network", ", ".join(addresses)),
            f"correct its line in /etc/hosts there; or {give_address}",
        )


def _is_literal(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def _own_name(node: NodeReport, first: NodeReport, requirements: CheckRequirements) -> Iterator[Finding]:
    machine = node.parts.machine
    if machine is None or _variable(node, requirements, "GLOO_SOCKET_IFNAME"):
        return
    addresses, name = machine.own_addresses, machine.hostname
    on_node_0 = node is not first and share_network(node, first)
    if addresses and all(map(is_loopback, addresses)) and not on_node_0 and not _uses_loopback(first):
        yield Finding(
            *("own-name-loopback", WARNING, (node.host,)),
            f"its own name, {name}, resolves to loopback: gloo listens there, where no other node can connect",
            *("an address in the network", ", ".join(addresses)),
            f"give {name} its network address in /etc/hosts there (Debian writes 127.0.1.1), or set GLOO_SOCKET_IFNAME",
        )


def _uses_loopback(first: NodeReport) -> bool:
    """Test whether node 0 has a loopback address in the hosts file, as when all nodes are one machine."""
    addresses = _addresses(first)
    literal = first.node.address or first.node.host
    return bool(addresses) and _is_literal(literal) and all(map(is_loopback, addresses))


# ---- connections


def _connection(node: NodeReport, first: NodeReport, address: str, result: ConnectionTest | None) -> Iterator[Finding]:
    if result is None or result.outcome == "connected" or _leads_back(node, first):
        return
    port = first.parts.port.port if first.parts.port else None
    kind, how, fix = _OUTCOMES[result.outcome]
    what = f"connecting to node 0, {address} ({result.address}) port {port}, {how}"
    why = f": {result.why}" if result.why else ""
    yield Finding(kind, ERROR, (node.host,), what + why, "connected", *_found_and_fix(result, fix))


def _found_and_fix(result: ConnectionTest, fix: str) -> tuple[str, str]:
    outcome = {"timeout": "no answer", "stranger": "an answer from another machine"}.get(result.outcome, result.outcome)
    return f"{outcome} after {result.seconds:.1f} s", fix


_OPEN = "let the nodes reach each other on all ports above 1023"
_OUTCOMES = {
    "timeout": (
        "connect-timeout",
        "times out",
        f"a firewall drops the packets, or the way back is missing: {_OPEN} (iptables -L, ufw status, security groups)",
    ),
    "refused": (
        "connect-refused",
        "is refused",
        f"a firewall rejects it, or the address is another machine's: {_OPEN}; compare with `ip -br addr` on node 0",
    ),
    "rejected": (
        "connect-rejected",
        "is rejected en route",
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


def interface_to_node_0(node: NodeReport) -> NetworkInterface | None:
    """Find the network interface through which a node would send to node 0.

    Parameters
    ----------
    node : NodeReport
        The node.

    Returns
    -------
    NetworkInterface or None
        None if unknown.
    """
    source = node.connectivity.source if node.connectivity else ""
    if not source:
        return None
    interfaces = node.parts.interfaces or ()
    return next((each for each in interfaces if source in each.addresses), None)


def _variable(node: NodeReport, requirements: CheckRequirements, name: str) -> str:
    environment = node.parts.environment or {}
    return str(requirements.env.get(name) or environment.get(name, ""))


def _interface_names(node: NodeReport, requirements: CheckRequirements) -> Iterator[Finding]:
    interfaces = node.parts.interfaces
    if interfaces is None:
        return
    usable = [each.name for each in interfaces if each.up and each.addresses]
    for variable in VARIABLES:
        given = _variable(node, requirements, variable)
        if given and not select_interfaces(variable, given, usable):
            yield Finding(
                *(
                    "interface-missing",
                    ERROR,
                    (node.host,),
                    f"{variable}={given} matches no interface that is up there",
                ),
                *(given, ", ".join(usable)),
                f"set {variable} to an interface that all nodes have, or unset it",
            )


def select_interfaces(variable: str, given: str, names: Sequence[str]) -> list[str]:
    """Select the network interfaces that match an environment variable.

    Gloo and TensorPipe expect names. NCCL expects prefixes, or exact names after `=`, and excludes those after `^`.

    Parameters
    ----------
    variable : str
        One of VARIABLES.
    given : str
        Its value.
    names : sequence of str
        The interfaces of the node.

    Returns
    -------
    list of str
        Those that match.
    """
    if variable != "NCCL_SOCKET_IFNAME":
        exact_names = given.split(",")
        return [name for name in names if name in exact_names]
    excluding, exact = given.startswith("^"), given.lstrip("^").startswith("=")
    patterns = [each for each in given.lstrip("^=").split(",") if each]
    matching = [name for name in names if any(name == each if exact else name.startswith(each) for each in patterns)]
    return [name for name in names if name not in matching] if excluding else matching


def _differences(nodes: Sequence[NodeReport], address: str) -> Iterator[Finding]:
    resolving = [node for node in nodes[1:] if _addresses(node)]
    others = [node for node in resolving if not all(map(is_loopback, _addresses(node)))]
    resolved = {node.host: ", ".join(sorted(_addresses(node))) for node in others}
    yield from minority_findings(
        *("name-differs", WARNING, resolved, f"the address of node 0, {address}, resolves differently"),
        "make /etc/hosts the same everywhere, or give --master-addr an address",
    )
    interfaces = {node.host: found for node in others if (found := interface_to_node_0(node)) is not None}
    yield from minority_findings(
        *("mtu-differs", WARNING, {host: str(each.mtu) for host, each in interfaces.items()}),
        "the MTU towards node 0 differs: large messages can hang",
        "set the same MTU on all nodes and switches: ip link set dev NAME mtu N",
    )

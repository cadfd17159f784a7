"""Detect nodes that are one machine under two names. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torchfab.core.errors import InventoryError
from torchfab.core.specs import Node
from torchfab.transport.messages.launch import MachineIdentity, NodeFacts

SSH_PORT = 22
FIX = "remove one of the lines; for more ranks on that machine, write slots=N"


def groups(nodes: Sequence[Node], identities: Mapping[int, MachineIdentity | None]) -> list[list[Node]]:
    """Return the nodes that are one machine, reached by the same sshd.

    Two ports of one machine are two nodes: each has its own sshd, as containers and rehearsal clusters do.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes.
    identities : Mapping of int to MachineIdentity, optional
        The machine identity of each node, by node rank; None if unknown.

    Returns
    -------
    list of list of Node
        Groups of at least two nodes.
    """
    found: dict[tuple[str, int], list[Node]] = {}
    for node in nodes:
        identity = identities.get(node.rank)
        if identity is not None:
            found.setdefault((identity.id, identity.ssh_port or SSH_PORT), []).append(node)
    return [group for group in found.values() if len(group) > 1]


def problem(group: Sequence[Node]) -> str:
    """Describe a group of nodes that are one machine, with their lines of the hosts file."""
    names = [f"{node.label} ({node.origin})" for node in group]
    return f"{', '.join(names[:-1])} and {names[-1]} are one machine"


def check(nodes: Sequence[Node], answers: Mapping[int, NodeFacts]) -> None:
    """Reject a launch in which two nodes are one machine.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes of the job.
    answers : Mapping of int to NodeFacts
        The answers of phase one, by node rank.

    Raises
    ------
    InventoryError
        Two nodes are one machine: on GPUs, two ranks would share a device.
    """
    found = groups(nodes, {rank: answer.machine for rank, answer in answers.items()})
    if found:
        more = f"; {len(found) - 1} more machines have two names" if len(found) > 1 else ""
        raise InventoryError(problem(found[0]) + more, FIX)

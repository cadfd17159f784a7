"""Notice nodes that are one machine under two names. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torchfab.core.errors import InventoryError
from torchfab.core.specs import Node
from torchfab.transport.messages.launch import MachineIdentity, NodeFacts

SSH_PORT = 22
FIX = "leave one of the lines out; for more ranks on that machine, say slots=N"


def groups(nodes: Sequence[Node], identities: Mapping[int, MachineIdentity | None]) -> list[list[Node]]:
    """Return the nodes that are one machine, reached by the same sshd.

    Two ports of one machine are two nodes: each has an sshd of its own, as containers and rehearsals have.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes.
    identities : Mapping of int to MachineIdentity, optional
        Which machine each node is, by node rank; None where it is not known.

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
    """Refuse a launch on which one machine is two nodes.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes of the job.
    answers : Mapping of int to NodeFacts
        The answers of phase one, by node rank.

    Raises
    ------
    InventoryError
        Two names are one machine: on GPUs, two ranks would share a device.
    """
    found = groups(nodes, {rank: answer.machine for rank, answer in answers.items()})
    if found:
        more = f"; {len(found) - 1} more machines have two names" if len(found) > 1 else ""
        raise InventoryError(problem(found[0]) + more, FIX)

"""Notice nodes that are one machine under two names. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchfab.core.errors import InventoryError
from torchfab.core.specs import Node

SSH_PORT = 22
FIX = "leave one of the lines out; for more ranks on that machine, say slots=N"


def groups(nodes: Sequence[Node], identities: Mapping[int, Any]) -> list[list[Node]]:
    """Return the nodes that are one machine, reached by the same sshd.

    Two ports of one machine are two nodes: each has an sshd of its own, as containers and rehearsals have.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes.
    identities : Mapping of int to any
        What each node answered to the question which machine it is (`remote.host.identity`), by node rank.

    Returns
    -------
    list of list of Node
        Groups of at least two nodes.
    """
    found: dict[tuple[str, int], list[Node]] = {}
    for node in nodes:
        key = _key(identities.get(node.rank))
        if key is not None:
            found.setdefault(key, []).append(node)
    return [group for group in found.values() if len(group) > 1]


def _key(identity: Any) -> tuple[str, int] | None:
    if not isinstance(identity, Mapping) or not isinstance(identity.get("id"), str):
        return None
    port = identity.get("ssh_port")
    return identity["id"], port if isinstance(port, int) else SSH_PORT


def problem(group: Sequence[Node]) -> str:
    """Describe a group of nodes that are one machine, with their lines of the hosts file."""
    names = [f"{node.label} ({node.origin})" for node in group]
    return f"{', '.join(names[:-1])} and {names[-1]} are one machine"


def check(nodes: Sequence[Node], answers: Mapping[int, Mapping[str, Any]]) -> None:
    """Refuse a launch on which one machine is two nodes.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes of the job.
    answers : Mapping of int to Mapping
        The answers of phase one, by node rank.

    Raises
    ------
    InventoryError
        Two names are one machine: on GPUs, two ranks would share a device.
    """
    found = groups(nodes, {rank: answer.get("machine") for rank, answer in answers.items()})
    if found:
        more = f"; {len(found) - 1} more machines have two names" if len(found) > 1 else ""
        raise InventoryError(problem(found[0]) + more, FIX)

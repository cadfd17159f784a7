"""Parse one line of a `hosts` or `gpus` file: its words, host names and keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torchfab.core.hostlines import keys, targets
from torchfab.core.hostlines.words import Line
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node

HOST_KEYS = ("slots", "gpus", "address", "user", "port", "python", "workdir", "setup", "env.NAME")
PROCESS_KEYS = tuple(key for key in HOST_KEYS if key != "slots")


@dataclass(frozen=True)
class ParsedLine:
    """The nodes of one line, all with rank 0, and remarks about it.

    Parameters
    ----------
    nodes : tuple of Node
        Empty for a drained line (`slots=0`).
    notes : tuple of str
        Remarks for the user, one line each.
    """

    nodes: tuple[Node, ...]
    notes: tuple[str, ...] = ()


def parse_line(line: Line, known: Sequence[str]) -> ParsedLine:
    """Parse one line.

    Parameters
    ----------
    line : Line
        The line; it has at least one word.
    known : sequence of str
        The keys that the file may have: `HOST_KEYS` or `PROCESS_KEYS`.

    Returns
    -------
    ParsedLine

    Raises
    ------
    InventoryError
        The line is not valid.
    """
    found = targets.expand(line, line.words[0])
    values = keys.parse(line, known)
    base = Node(rank=0, host="", origin=line.origin, labels=values.labels, **values.fields)
    if len(found) > 1 and base.address:
        raise line.error("address= is for one node, and this line names several", "write those nodes on separate lines")
    nodes = tuple(_node(line, base, target) for target in found)
    notes = [f"{line.origin}: {name}= is not a key of torchfab: kept as a label" for name, _ in values.labels]
    if base.slots == 0:
        notes.append(f"{line.origin}: slots=0: {line.words[0]} is not used")
        nodes = ()
    return ParsedLine(nodes, tuple(notes))


def _node(line: Line, base: Node, target: targets.Target) -> Node:
    for key, inline, value in (("user", target.user, base.user), ("port", target.port, base.port)):
        if inline and value and inline != value:
            raise line.error(f"{target.host} has the {key} {inline}, and {key}={value}", f"give the {key} once")
    return replace(base, host=target.host, user=target.user or base.user, port=target.port or base.port)

"""Parse the `hosts` and `gpus` files into nodes and slots. Errors name the file, the line, and what was expected.

hosts   one host per line: [user@]host[:port] [slots=8] [gpus=2,3] [address=10.0.0.5]; ranges as node[01-16]
gpus    one line per process: the same host again for its next GPU, in any order; ranks follow the lines

`core/hostlines` parses one line; `core/hostfiles` reads files, also those of other tools. Most commands fold names
only, so `core/hostlines` is imported where a file is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torchfab.core.errors import InventoryError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node, Slot

if TYPE_CHECKING:
    from torchfab.core.hostlines.words import Line

_Key = tuple[str, "int | None"]


@dataclass(frozen=True)
class Inventory:
    """The content of a hosts or gpus file.

    Parameters
    ----------
    nodes : tuple of Node
        The hosts, in the order of their first lines.
    slots : tuple of Slot
        The processes of a gpus file; empty for a hosts file.
    notes : tuple of str
        Remarks for the user: hosts that are not used, keys that are only labels.
    """

    nodes: tuple[Node, ...]
    slots: tuple[Slot, ...] = ()
    notes: tuple[str, ...] = ()


def parse_hosts(text: str, origin: str) -> tuple[Node, ...]:
    """Parse the text of a hosts file of torchfab.

    Parameters
    ----------
    text : str
        One host per line; `#` comments, blank lines, CRLF and a byte order mark are allowed.
    origin : str
        Name of the file, for messages.

    Returns
    -------
    tuple of Node
        In the order of the text.

    Raises
    ------
    InventoryError
        A line is not valid, or there is no host.
    """
    from torchfab.core.hostlines.words import lines_of

    return hosts_from_lines(lines_of(text, origin), origin).nodes


def hosts_from_lines(lines: Iterable[Line], origin: str) -> Inventory:
    """Parse the lines of a hosts file.

    Parameters
    ----------
    lines : iterable of Line
        The lines.
    origin : str
        Name of the file, for messages.

    Returns
    -------
    Inventory
        Without slots.

    Raises
    ------
    InventoryError
        A line is not valid, or there is no host.
    """
    from torchfab.core.hostlines import HOST_KEYS, parse_line

    nodes: dict[_Key, Node] = {}
    notes: list[str] = []
    for line in lines:
        parsed = parse_line(line, HOST_KEYS)
        notes += parsed.notes
        for node in parsed.nodes:
            if (earlier := nodes.get(_key(node))) is not None:
                raise _listed_twice(line, node, earlier)
            nodes[_key(node)] = replace(node, rank=len(nodes))
    return Inventory(_require_hosts(nodes.values(), origin, notes), notes=tuple(notes))


def _key(node: Node) -> _Key:
    """Return the key that identifies a host in a file; host names are case-insensitive."""
    return node.host.lower(), node.port


def _listed_twice(line: Line, node: Node, earlier: Node) -> InventoryError:
    fix = "a host is listed once in a hosts file; write slots=N for more processes on it"
    if node.host != earlier.host:
        return line.error(f"{node.label} is the same host as {earlier.label} in {earlier.origin}", fix)
    return line.error(f"{node.label} is already listed in {earlier.origin}", fix)


def parse_hosts_flag(hosts: str, origin: str = "-H") -> tuple[Node, ...]:
    """Parse the value of `-H host1,host2`.

    Parameters
    ----------
    hosts : str
        Hosts, separated by commas; a comma inside brackets belongs to a range.
    origin : str
        Name of the flag, for messages. Default `-H`.

    Returns
    -------
    tuple of Node
        In the order of the hosts.
    """
    return parse_hosts(split_hosts_flag(hosts), origin)


def split_hosts_flag(hosts: str) -> str:
    """Convert the value of `-H host1,node[1,3]` to the text of a hosts file.

    Parameters
    ----------
    hosts : str
        Hosts, separated by commas; a comma inside brackets or braces belongs to a range.

    Returns
    -------
    str
        One host, or one range of hosts, per line.
    """
    from torchfab.core.hostlines import targets

    return "\n".join(targets.split_list(hosts))


def parse_gpus(text: str, origin: str) -> tuple[tuple[Node, ...], tuple[Slot, ...]]:
    """Parse the text of a gpus file.

    Ranks follow the order of the lines, node ranks that of the first line of each host, and local ranks that of the
    lines of one host. `gpus=2,3` is equivalent to one line per device.

    Parameters
    ----------
    text : str
        One process per line.
    origin : str
        Name of the file, for messages.

    Returns
    -------
    tuple of tuple of Node and tuple of Slot
        The hosts in the order of their first lines, and one slot per process.

    Raises
    ------
    InventoryError
        A line is not valid, or there is no host.
    """
    from torchfab.core.hostlines.words import lines_of

    found = gpus_from_lines(lines_of(text, origin), origin)
    return found.nodes, found.slots


def gpus_from_lines(lines: Iterable[Line], origin: str) -> Inventory:
    """Parse the lines of a gpus file.

    Parameters
    ----------
    lines : iterable of Line
        The lines.
    origin : str
        Name of the file, for messages.

    Returns
    -------
    Inventory

    Raises
    ------
    InventoryError
        A line is not valid, or there is no host.
    """
    from torchfab.core.hostlines import PROCESS_KEYS, parse_line

    nodes: dict[_Key, Node] = {}
    slots: list[Slot] = []
    notes: list[str] = []
    counts: dict[int, int] = {}
    for line in lines:
        parsed = parse_line(line, PROCESS_KEYS)
        notes += parsed.notes
        for node in parsed.nodes:
            first = nodes.setdefault(_key(node), replace(node, rank=len(nodes), gpus=()))
            nodes[_key(node)] = _merge(line, first, node, counts.get(first.rank, 0))
            for _ in node.gpus or ("",):
                local_rank = counts.setdefault(first.rank, 0)
                slots.append(Slot(rank=len(slots), node_rank=first.rank, local_rank=local_rank))
                counts[first.rank] = local_rank + 1
    return Inventory(_require_hosts(nodes.values(), origin, notes), tuple(slots), tuple(notes))


def _merge(line: Line, first: Node, node: Node, lines_before: int) -> Node:
    """Merge a further line of a host into the host of a gpus file."""
    if bool(node.gpus) != bool(first.gpus) and lines_before:
        raise line.error(f"{node.label} has gpus= on some lines only", "write gpus=N on all of its lines, or on none")
    duplicates = set(node.gpus) & set(first.gpus)
    if duplicates:
        raise line.error(f"device {min(duplicates)} of {node.label} is named twice", "one line per device")
    for name in ("user", "address", "python", "workdir", "setup"):
        earlier, here = getattr(first, name), getattr(node, name)
        if earlier and here and earlier != here:
            raise line.error(
                f"{node.label} has the {name} {earlier} on another line, and {here} here",
                "give the same value on all lines of a host",
            )
    env, here_env = dict(first.env), dict(node.env)
    if any(env.get(name, value) != value for name, value in here_env.items()):
        raise line.error(
            f"{node.label} has a different env. value on another line", "give a variable one value per host"
        )
    return replace(
        first,
        gpus=first.gpus + node.gpus,
        user=first.user or node.user,
        address=first.address or node.address,
        python=first.python or node.python,
        workdir=first.workdir or node.workdir,
        setup=first.setup or node.setup,
        env=tuple({**env, **here_env}.items()),
    )


def _require_hosts(nodes: Iterable[Node], origin: str, notes: Sequence[str]) -> tuple[Node, ...]:
    found = tuple(nodes)
    if not found:
        from torchfab.core.hostlines.words import EXPECTED

        drained = "; every line has slots=0" if notes else ""
        raise InventoryError(f"{origin}: names no host{drained}", EXPECTED)
    return found


def fold(hosts: Sequence[str]) -> str:
    """Fold host names into ranges.

    Parameters
    ----------
    hosts : sequence of str
        Host names.

    Returns
    -------
    str
        `node[001-064]`; the names, separated by commas, if they cannot be folded.
    """
    if len(hosts) < 2:
        return "".join(hosts)
    from torchfab.core.hostlines import targets

    if not all(targets.HOST.fullmatch(host) for host in hosts):
        return ",".join(hosts)
    from ClusterShell.NodeSet import NodeSet

    return str(NodeSet.fromlist(list(hosts)))


def fold_ranks(ranks: Sequence[int]) -> str:
    """Fold ranks into ranges.

    Parameters
    ----------
    ranks : sequence of int
        In any order.

    Returns
    -------
    str
        `0-2,5`.
    """
    runs: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    return ",".join("-".join(map(str, run)) for run in runs)


def parse_ranks(text: str) -> tuple[int, ...]:
    """Parse the value of `--rank`.

    Parameters
    ----------
    text : str
        Ranks and ranges: `0,2-5`.

    Returns
    -------
    tuple of int
        In the order of the text.

    Raises
    ------
    InventoryError
        The text is not a list of ranks.
    """
    ranks: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part.strip())
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise InventoryError(f"--rank {text}: {part!r} is not a rank", "write ranks as 0,2-5")
        ranks += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(ranks)

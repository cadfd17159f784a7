"""Parse the `hosts` and `gpus` files into nodes and slots. Errors name file and line, what was read and expected.

hosts   one host per line: [user@]host[:port] [slots=8] [gpus=2,3] [address=10.0.0.5]; ranges as node[01-16]
gpus    one line per process: the same host again for its next GPU, in any order; ranks follow the lines
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torchfab.core.errors import InventoryError
from torchfab.core.flag_values import is_whole
from torchfab.core.specs import Node, Slot

MAX_HOSTS = 10_000
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?")
_PATTERN = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]|\[[0-9,/-]+\])*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\$?")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9._-]+)?")
_NUMBER = re.compile(r"[0-9]{1,9}")  # int() rejects strings of more than 4300 digits
_DEVICE = re.compile(r"[A-Za-z0-9-]+")
_EXPECTED = (
    "expected [user@]host[:port] [slots=N] [gpus=0,1] [address=A], with ranges as node[01-16] and IPv6 as [fd00::1]"
)


@dataclass(frozen=True)
class _Line:
    """One line that is not blank or a comment: its `file:line`, and its words."""

    origin: str
    words: tuple[str, ...]

    def error(self, problem: str, fix: str = _EXPECTED) -> InventoryError:
        return InventoryError(f"{self.origin}: {problem}", fix)


def read_hosts(path: Path) -> tuple[Node, ...]:
    """Read a hosts file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    tuple of Node
        In the order of the file.

    Raises
    ------
    InventoryError
        The file is missing, has no host, or has a line that is not valid.
    """
    return parse_hosts(_read(path), str(path))


def read_gpus(path: Path) -> tuple[tuple[Node, ...], tuple[Slot, ...]]:
    """Read a gpus file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    tuple of tuple of Node and tuple of Slot
        The hosts in the order of their first lines, and one slot per process.

    Raises
    ------
    InventoryError
        The file is missing, has no host, or has a line that is not valid.
    """
    return parse_gpus(_read(path), str(path))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InventoryError(
            f"{path}: there is no such file", "write one host a line into it, or name hosts with -H host1,host2"
        ) from None
    except UnicodeDecodeError as error:
        raise InventoryError(f"{path}: not UTF-8 text (byte {error.start})", "save it as plain text") from None
    except OSError as error:
        raise InventoryError(f"{path}: cannot be read: {error.strerror}") from None


def parse_hosts(text: str, origin: str) -> tuple[Node, ...]:
    """Parse the text of a hosts file.

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
    nodes: dict[tuple[str, int | None], Node] = {}
    for line in _lines(text, origin):
        for node in _nodes_of(line, ("slots", "gpus", "address")):
            key = (node.host, node.port)
            if key in nodes:
                raise line.error(
                    f"{node.label} is already listed in {nodes[key].origin}",
                    "a host is listed once in a hosts file; say slots=N for more processes on it",
                )
            nodes[key] = replace(node, rank=len(nodes))
    return tuple(_require_hosts(list(nodes.values()), origin))


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
        Hosts, separated by commas; a comma inside brackets belongs to a range.

    Returns
    -------
    str
        One host, or one range of hosts, per line.
    """
    return "\n".join(re.split(r",(?![^\[]*\])", hosts))


def parse_gpus(text: str, origin: str) -> tuple[tuple[Node, ...], tuple[Slot, ...]]:
    """Parse the text of a gpus file.

    Ranks follow the order of the lines, node ranks that of the first line of each host, and local ranks that of the
    lines of one host. `gpus=2,3` is short for one line per device.

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
    nodes: dict[tuple[str, int | None], Node] = {}
    slots: list[Slot] = []
    counts: dict[int, int] = {}
    for line in _lines(text, origin):
        for node in _nodes_of(line, ("gpus", "address")):
            first = nodes.setdefault((node.host, node.port), replace(node, rank=len(nodes), gpus=()))
            nodes[node.host, node.port] = _merge_devices(line, first, node, counts.get(first.rank, 0))
            for _ in node.gpus or ("",):
                local_rank = counts.setdefault(first.rank, 0)
                slots.append(Slot(rank=len(slots), node_rank=first.rank, local_rank=local_rank))
                counts[first.rank] = local_rank + 1
    return tuple(_require_hosts(list(nodes.values()), origin)), tuple(slots)


def _merge_devices(line: _Line, first: Node, node: Node, lines_before: int) -> Node:
    if bool(node.gpus) != bool(first.gpus) and lines_before:
        raise line.error(
            f"{node.label} names its devices on some lines only", "say gpus=N on all of its lines, or on none"
        )
    duplicates = set(node.gpus) & set(first.gpus)
    if duplicates:
        raise line.error(f"device {min(duplicates)} of {node.label} is named twice", "one line per device")
    for name, earlier, here in (("user", first.user, node.user), ("address", first.address, node.address)):
        if earlier and here and earlier != here:
            raise line.error(
                f"{node.label} has the {name} {earlier} on another line, and {here} here", "a host has one"
            )
    user, address = first.user or node.user, first.address or node.address
    return replace(first, gpus=first.gpus + node.gpus, user=user, address=address)


def _require_hosts(nodes: list[Node], origin: str) -> list[Node]:
    if not nodes:
        raise InventoryError(f"{origin}: names no host", _EXPECTED)
    return nodes


def _lines(text: str, origin: str) -> Iterator[_Line]:
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        words = line.partition("#")[0].split()
        if words:
            yield _Line(f"{origin}:{number}" if not origin.startswith("-") else origin, tuple(words))


def _nodes_of(line: _Line, keys: Sequence[str]) -> list[Node]:
    user, host, port = _split_target(line, line.words[0])
    values = _options(line, keys)
    base = Node(
        rank=0,
        host=host,
        user=user,
        port=port,
        address=values.get("address", ""),
        slots=_slots(line, values.get("slots")),
        gpus=_devices(line, values.get("gpus")),
        origin=line.origin,
    )
    hosts = _expand(line, host)
    if len(hosts) > 1 and base.address:
        raise line.error("address= names one node, the range names several", "write those nodes on lines of their own")
    return [replace(base, host=each) for each in hosts]


def _split_target(line: _Line, target: str) -> tuple[str, str, int | None]:
    """Return user, host (or pattern) and port of `user@host:port`."""
    user, at, rest = target.rpartition("@")
    if at and not _USER.fullmatch(user):
        raise line.error(f"{user!r} is not a user name")
    bracketed = re.fullmatch(r"\[([^\]]*:[^\]]*)\](?::(.*))?", rest)
    if bracketed:
        if not _IPV6.fullmatch(bracketed[1]):
            raise line.error(f"{bracketed[1]!r} is not an IPv6 address")
        return user, bracketed[1], _port(line, bracketed[2])
    if rest.count(":") > 1:
        raise line.error(f"{rest!r} looks like an IPv6 address without brackets", f"write [{rest}]")
    host, colon, port = rest.partition(":")
    if not _PATTERN.fullmatch(host) or not ("[" in host or _HOST.fullmatch(host)):
        raise line.error(f"{host!r} is not a host name")
    return user, host, _port(line, port if colon else None)


def _port(line: _Line, text: str | None) -> int | None:
    if text is None:
        return None
    if not (_NUMBER.fullmatch(text) and 1 <= int(text) <= 65535):
        raise line.error(f"{text!r} is not a port", "a port is a number from 1 to 65535")
    return int(text)


def _options(line: _Line, keys: Sequence[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for word in line.words[1:]:
        key, equals, value = word.partition("=")
        if not equals or key not in keys:
            known = ", ".join(f"{each}=" for each in keys)
            raise line.error(f"unknown key {key!r} in {word!r}", f"known keys here: {known}")
        if key in values or not value:
            raise line.error(f"{key}= needs one value, got {word!r}")
        values[key] = value
    if "address" in values and not (_HOST.fullmatch(values["address"]) or _IPV6.fullmatch(values["address"])):
        raise line.error(f"{values['address']!r} is not a host name or address")
    return values


def _slots(line: _Line, text: str | None) -> int | None:
    if text is None:
        return None
    if not (_NUMBER.fullmatch(text) and 1 <= int(text) <= 1024):
        raise line.error(
            f"slots={text}: not a number of processes", "say how many processes to run there, for example slots=8"
        )
    return int(text)


def _devices(line: _Line, text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    devices = tuple(text.split(","))
    if not all(_DEVICE.fullmatch(device) for device in devices) or len(set(devices)) < len(devices):
        raise line.error(f"gpus={text}: not a list of devices", "name each device once, for example gpus=2,3")
    return devices


def _expand(line: _Line, host: str) -> list[str]:
    if "[" not in host:
        return [host]
    from ClusterShell.NodeSet import NodeSet, NodeSetException  # only where a range is used: 30 ms

    if _max_host_count(host) > MAX_HOSTS:
        raise line.error(f"the range {host} has more than {MAX_HOSTS} hosts")
    try:
        hosts = list(NodeSet(host))
    except (NodeSetException, ValueError) as error:
        raise line.error(f"bad range {host!r}: {error}", "ranges are written as node[01-16] or node[1,3,7-9]") from None
    return hosts


def _max_host_count(pattern: str) -> int:
    """Return an upper bound for the hosts of a pattern with ranges; it ignores steps, and expands nothing."""
    product = 1
    for ranges in re.findall(r"\[([^\]]*)\]", pattern):
        ends = [part.partition("/")[0].partition("-") for part in ranges.split(",")]
        if any(len(low) > 9 or len(high) > 9 for low, _, high in ends):
            return MAX_HOSTS + 1
        product *= sum(
            max(1, int(high) - int(low) + 1) if is_whole(low) and is_whole(high) else 1 for low, _, high in ends
        )
    return product


def fold(hosts: Sequence[str]) -> str:
    """Fold host names into ranges.

    Parameters
    ----------
    hosts : sequence of str
        Host names.

    Returns
    -------
    str
        `node[001-064]`; the names, separated by commas, where they cannot be folded.
    """
    if len(hosts) < 2:
        return "".join(hosts)
    if not all(_HOST.fullmatch(host) for host in hosts):
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

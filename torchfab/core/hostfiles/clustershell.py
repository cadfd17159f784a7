"""Groups files of ClusterShell: `gpu: node[1-16]` a line, or the same in YAML below the name of a source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torchfab.core.hostfiles import groups
from torchfab.core.hostfiles.dialect import Dialect, Source, Translation
from torchfab.core.hostlines.targets import HOST, MAX_HOSTS, max_host_count
from torchfab.core.hostlines.words import significant_lines

TITLE = "a groups file of ClusterShell"
_ENTRY = re.compile(r"\s*([A-Za-z0-9_][\w.-]*)\s*:\s+([^\s:]\S*(?:\s*,\s*\S+)*)\s*")


def matches(source: Source) -> bool:
    """Say whether every line is a group and its hosts, and at least one has a range, a list or another group."""
    entries = [_ENTRY.fullmatch(line.partition("#")[0]) for _, line in significant_lines(source.text)]
    if not entries or not all(entries):
        return False
    return any(re.search(r"\[[\d,/-]+\]|,|@", entry[2]) for entry in entries if entry)


def translate(source: Source) -> Translation:
    """Resolve the groups; the hosts of all of them, unless some were asked for."""
    data: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for number, line in significant_lines(source.text):
        entry = _ENTRY.fullmatch(line.partition("#")[0])
        if not entry:
            raise source.error(number, f"{line.strip()!r} is no group", f"{TITLE} has lines as gpu: node[1-16]")
        data[entry[1]], numbers[entry[1]] = re.sub(r"\s", "", entry[2]), number
    return resolve(source, data, numbers)


def is_document(value: Any) -> bool:
    """Say whether a YAML document is a groups file: sources, which map groups to sets of nodes."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(each, dict) and each and all(map(_is_set, each.values())) for each in value.values())


def _is_set(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def read_document(source: Source, value: Mapping[str, Mapping[str, Any]]) -> Translation:
    """Resolve the groups of a YAML document; those of a second source are named `source:group`."""
    data: dict[str, str] = {}
    for name, content in value.items():
        for group, nodes in content.items():
            key = group if group not in data else f"{name}:{group}"
            data[key] = nodes if isinstance(nodes, str) else ",".join(nodes)
    return resolve(source, data, {})


def resolve(source: Source, data: Mapping[str, str], numbers: Mapping[str, int]) -> Translation:
    """Return one line per host of the groups.

    Parameters
    ----------
    source : Source
        The file, and the groups that were asked for.
    data : Mapping of str to str
        The set of nodes of each group; it may name others (`@gpu`).
    numbers : Mapping of str to int
        The line of each group, where it is known.

    Returns
    -------
    Translation

    Raises
    ------
    InventoryError
        A set of nodes is not valid.
    """
    members = {name: _nodes(source, name, data, numbers.get(name, 0)) for name in data}
    first = {host: numbers.get(name, 0) for name in reversed(list(data)) for host in members[name]}
    hosts = groups.choose(source, members)
    return Translation([source.line(first[host], host) for host in hosts], groups=list(data))


def _nodes(source: Source, name: str, data: Mapping[str, str], number: int) -> list[str]:
    from ClusterShell.NodeSet import NodeSet, NodeSetException
    from ClusterShell.NodeUtils import GroupResolver, GroupResolverError, GroupSource, GroupSourceError

    resolver = GroupResolver(GroupSource("file", dict(data)))
    fix = f"{TITLE} has lines as gpu: node[1-16]"
    if max_host_count(data[name]) > MAX_HOSTS:
        raise source.error(number, f"the group {name!r} has more than {MAX_HOSTS} hosts", fix)
    try:
        hosts: list[str] = list(NodeSet(data[name], resolver=resolver))
    except (NodeSetException, GroupResolverError, GroupSourceError, ValueError, RecursionError) as error:
        raise source.error(number, f"the group {name!r}: {str(error) or 'contains itself'}", fix) from None
    wrong = next((host for host in hosts if not HOST.fullmatch(host)), None)
    if wrong is not None:
        raise source.error(number, f"the group {name!r} contains {wrong!r}, which is not a host name", fix)
    return hosts


DIALECT = Dialect(("clustershell",), TITLE, matches, translate)

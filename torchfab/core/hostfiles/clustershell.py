"""Groups files of ClusterShell: `gpu: node[1-16]` a line, or the same in YAML below the name of a source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torchfab.core.hostfiles import groups
from torchfab.core.hostfiles.dialect import Dialect, Source, Translation
from torchfab.core.hostfiles.structured import number_of
from torchfab.core.hostlines.targets import HOST, MAX_HOSTS, max_host_count
from torchfab.core.hostlines.words import significant_lines
from torchfab.core.lazy_dataclass import dataclass

TITLE = "a groups file of ClusterShell"
_ENTRY = re.compile(r"\s*([A-Za-z0-9_][\w.-]*)\s*:\s+([^\s:]\S*(?:\s*,\s*\S+)*)\s*")


def matches(source: Source) -> bool:
    """Return whether every line is a group and its hosts, and at least one has a range, a list or another group.

    Parameters
    ----------
    source : Source
        The text of the file.

    Returns
    -------
    bool
    """
    entries = [_ENTRY.fullmatch(line.partition("#")[0]) for _, line in significant_lines(source.text)]
    if not entries or not all(entries):
        return False
    return any(re.search(r"\[[\d,/-]+\]|,|@", entry[2]) for entry in entries if entry)


def translate(source: Source) -> Translation:
    """Resolve the selected groups, or all groups if none is selected.

    Parameters
    ----------
    source : Source
        The text, and the selected groups.

    Returns
    -------
    Translation
        One line per host.

    Raises
    ------
    InventoryError
        A line is not a group, or a group is unknown, invalid or contains itself.
    """
    data: dict[str, str] = {}
    numbers: dict[str, int] = {}  # the line of each group
    for number, line in significant_lines(source.text):
        entry = _ENTRY.fullmatch(line.partition("#")[0])
        if not entry:
            raise source.error(number, f"{line.strip()!r} is not a group", f"{TITLE} has lines such as gpu: node[1-16]")
        data[entry[1]], numbers[entry[1]] = _set(entry[2]), number
    sources = _Sources("file", {"file": data})
    members = {name: _nodes(source, name, data[name], sources, numbers[name]) for name in data}
    return _translation(source, members, numbers)


def is_document(value: Any) -> bool:
    """Return whether a YAML document is a groups file: sources, which map groups to sets of nodes.

    Parameters
    ----------
    value : any
        The document, as `structured.load` returns it.

    Returns
    -------
    bool
    """
    if not isinstance(value, dict) or not value:
        return False
    groups_ = [each for each in value.values() if isinstance(each, dict) and each]
    sets = [nodes for each in groups_ for nodes in each.values()]
    has_name = any(not str(nodes).isdigit() for nodes in sets)  # not `a: {slots: 8}`
    return len(groups_) == len(value) and all(map(_is_set, sets)) and has_name


def _is_set(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def read_document(source: Source, value: Mapping[str, Mapping[str, Any]]) -> Translation:
    """Resolve the groups of a YAML document.

    Parameters
    ----------
    source : Source
        The file, and the selected groups.
    value : Mapping
        A document for which `is_document` is true.

    Returns
    -------
    Translation
        Groups of the first source, which is the default one, have their plain names; others are `source:group`.
    """
    sources = {name: {group: _set(nodes) for group, nodes in content.items()} for name, content in value.items()}
    first = next(iter(sources))
    members, numbers = {}, {}
    for name, content in sources.items():
        for group in content:
            key = group if name == first else f"{name}:{group}"
            numbers[key] = number_of(group)
            members[key] = _nodes(source, key, content[group], _Sources(name, sources), numbers[key])
    return _translation(source, members, numbers)


def _set(nodes: str | list[str]) -> str:
    return re.sub(r"\s*,\s*", ",", nodes if isinstance(nodes, str) else ",".join(nodes)).strip()


@dataclass(frozen=True)
class _Sources:
    """The groups of all sources, and the source in which a group without a source is looked up."""

    default: str
    maps: Mapping[str, Mapping[str, str]]


def _translation(source: Source, members: Mapping[str, list[str]], numbers: Mapping[str, int]) -> Translation:
    first = {host: numbers[name] for name in reversed(list(members)) for host in members[name]}
    hosts = groups.choose(source, members)
    return Translation([source.line(first[host], host) for host in hosts], groups=list(members))


def _nodes(source: Source, name: str, nodes: str, sources: _Sources, number: int) -> list[str]:
    """Return the hosts of a set of nodes, which may name groups."""
    from ClusterShell.NodeSet import NodeSet, NodeSetException
    from ClusterShell.NodeUtils import GroupResolver, GroupResolverError, GroupSource, GroupSourceError

    fix = f"{TITLE} has lines such as gpu: node[1-16]"
    if max_host_count(nodes) > MAX_HOSTS:
        raise source.error(number, f"the group {name!r} has more than {MAX_HOSTS} hosts", fix)
    resolver = GroupResolver(GroupSource(sources.default, dict(sources.maps[sources.default])))
    for other in sources.maps:
        if other != sources.default:
            resolver.add_source(GroupSource(other, dict(sources.maps[other])))
    try:
        hosts: list[str] = list(NodeSet(nodes, resolver=resolver))
    except (NodeSetException, GroupResolverError, GroupSourceError, ValueError, RecursionError) as error:
        if isinstance(error, RecursionError) or "recursion" in str(error):
            raise source.error(number, f"the group {name!r} contains itself", "correct its members") from None
        raise source.error(number, f"the group {name!r}: {str(error) or 'contains itself'}", fix) from None
    wrong = next((host for host in hosts if not HOST.fullmatch(host)), None)
    if wrong is not None:
        raise source.error(number, f"the group {name!r} contains {wrong!r}, which is not a host name", fix)
    return hosts


DIALECT = Dialect(("clustershell",), TITLE, matches, translate)
